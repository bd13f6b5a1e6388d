"""`qwen3vl-edge parity`."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

from rich.console import Console

from contract.checkpoint import open_checkpoint
from edge_runtime.backends.pytorch import PytorchEngine
from edge_runtime.edge import Edge, EdgeOptions, open_edge
from tools.parity.encoder import EncoderRow, compare_encoders
from tools.parity.end_to_end import compare_prompts, open_both
from tools.parity.pictures import pictures_of
from tools.parity.prompts import prompts_about, read_prompts
from tools.parity.report import ParityReport, print_report

MIN_AGREEMENT = {"fp32": 1.0, "fp16": 0.99}


def run(
    bundle: Path,
    model: str,
    images: Path | None,
    prompts: Path | None,
    options: EdgeOptions,
    max_new_tokens: int,
    as_json: bool,
) -> None:
    """Measure, print, and exit with code 1 if the split does not hold.

    Raises:
        ContractError: an input that cannot be used.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    console = Console(stderr=True)
    pictures = pictures_of(images)
    asked = read_prompts(prompts) if prompts else prompts_about(pictures)
    with open_edge(bundle, options) as edge, console.status("parity") as status:
        split, unsplit = open_both(edge, model)
        rows = _encoders(edge, model, pictures, lambda name: status.update(f"encoder, bucket {name}"))
        results = compare_prompts(asked, split, unsplit, max_new_tokens, lambda name: status.update(f"asking {name}"))
        used, backend = edge.engine.precision, edge.engine.name
    report = ParityReport(
        bundle=str(bundle),
        model=model,
        precision=used,
        backend=backend,
        wire_dtype=options.wire_dtype,
        encoder=tuple(rows),
        prompts=tuple(results),
        min_agreement=min(MIN_AGREEMENT[used], MIN_AGREEMENT[options.wire_dtype]),
        tools={name: importlib.metadata.version(name) for name in ("torch", "transformers", "qwen-vl-utils")},
    )
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
    else:
        print_report(report)
    if not report.passed:
        raise SystemExit(1)


def _encoders(edge: Edge, model: str, pictures, progress) -> list[EncoderRow]:  # type: ignore[no-untyped-def]
    oracle = PytorchEngine(open_checkpoint(model))
    try:
        return compare_encoders(edge, oracle, pictures, progress)
    finally:
        oracle.close()
