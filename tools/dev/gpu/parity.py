"""The step `parity`: the reference checkpoint on each GPU backend, its answers and its self-test."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.edge_runtime.backends.proven import ProvenBackend
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, PixelBackend
from qwen3vl_edge.export.bundle import export_bundle
from qwen3vl_edge.tools.dev.bench.make_bundle import REFERENCE
from qwen3vl_edge.tools.dev.gpu.candidates import Candidate, NotHereError, build_engine, wanted
from qwen3vl_edge.tools.dev.gpu.context import Context, Report, reason
from qwen3vl_edge.tools.parity.run import ParityRequest, run_parity

SAMPLES = Path("reference/samples")
NO_BUCKET = Grid(1, 2, 2)  # of the dynamic graph
CLIP_READERS = ("av", "decord", "torchcodec")


def report_parity(context: Context, report: Report) -> None:
    """A row for each candidate: whether parity holds, lowest cosine, answers, and what the self-test says."""
    bundle = context.work / "reference"
    candidates = [item for item in wanted(context) if item.parity]
    export_bundle(
        str(REFERENCE),
        bundle,
        image_buckets=context.sizes.reference_buckets,
        precisions=tuple(dict.fromkeys(item.dtype for item in candidates if item.dtype != "bf16")),
    )
    prompts = _prompts(context)
    for candidate in candidates:
        started = time.perf_counter()
        row: dict[str, Any] = {"candidate": candidate.name, "dtype": candidate.dtype}
        try:
            row |= _compare(candidate, context, bundle, prompts)
        except NotHereError as error:
            row["not_here"] = error.message
        except Exception as error:  # a library's failure is a row
            row["failed"] = reason(error)
        report("parity", {**row, "seconds": round(time.perf_counter() - started, 1)})


def _compare(candidate: Candidate, context: Context, bundle: Path, prompts: Path) -> dict[str, Any]:
    if candidate.library is not None:
        build_engine(candidate, bundle)
    options = candidate.backend_options(context, REFERENCE)
    wire = "fp32" if candidate.dtype == "fp32" else "fp16"
    proven = _self_test(candidate, bundle, options, wire)
    quiet = EdgeOptions(backend=candidate.backend, backend_options=_without_self_test(options), wire_dtype=wire)
    request = ParityRequest(bundle, str(REFERENCE), quiet, SAMPLES, prompts, max_new_tokens=16)
    found = run_parity(request, lambda what: None).report
    return {
        "passed": found.passed,
        "backend": found.backend,
        "lowest_cosine": min(row.distance.cosine for row in found.encoder),
        "comparisons": len(found.encoder),
        "answers_equal": sum(item.agrees for item in found.exact_prompts),
        "answers": len(found.exact_prompts),
        "max_kl": found.max_kl,
        "beyond_limits": [str(row) for row in found.failures][:5],
        **proven,
    }


def _self_test(candidate: Candidate, bundle: Path, options: BackendOptions, wire: str) -> dict[str, Any]:
    """Each graph proves itself, as it does before it serves its first picture."""
    edge_options = EdgeOptions(backend=candidate.backend, backend_options=options, wire_dtype=wire)
    with open_edge(bundle, edge_options) as edge:
        encoder = edge.encoder
        assert isinstance(encoder, ProvenBackend)
        grids = [*encoder.serves.buckets, *([NO_BUCKET] if encoder.serves.dynamic else [])]
        graphs = [(grid, False) for grid in grids]
        if isinstance(encoder, PixelBackend):
            graphs += [(grid, True) for grid in grids if encoder.takes_pixels(grid)]
        for grid, pixels in graphs:
            encoder.self_test.prove(grid, pixels=pixels)
    return {"self_test": f"{len(graphs)} graphs passed"}


def _without_self_test(options: BackendOptions) -> BackendOptions:
    from dataclasses import replace

    return replace(options, self_test=False)


def _prompts(context: Context) -> Path:
    """The sample questions that this machine can read: those about clips need a reader."""
    lines = (SAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    if context.dry or not any(importlib.util.find_spec(name) for name in CLIP_READERS):
        lines = [line for line in lines if '"video"' not in line]
    file = context.work / "questions.jsonl"
    rows = [_with_paths(json.loads(line)) for line in lines[: context.sizes.prompts]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def _with_paths(row: dict[str, Any]) -> dict[str, Any]:
    """The same with whole paths: they are relative to the file's folder."""
    for message in row["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            for kind in ("image", "video"):
                if isinstance(part.get(kind), str):
                    part[kind] = str((SAMPLES / part[kind]).absolute())
    return row
