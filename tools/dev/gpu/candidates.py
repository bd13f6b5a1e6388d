"""The encoders that the kit tests and times: a new one is a line in CANDIDATES."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.open import Bundle, open_bundle
from qwen3vl_edge.contract.errors import EngineError
from qwen3vl_edge.edge_runtime.backends.onnxruntime import OnnxRuntimeBackend
from qwen3vl_edge.edge_runtime.backends.registry import load_backend
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, EncoderBackend
from qwen3vl_edge.tools.dev.gpu.context import Context
from qwen3vl_edge.tools.dev.gpu.upstream import UpstreamEncoder

UPSTREAM = "transformers"


class NotHereError(EngineError):
    """This machine lacks the candidate's library; that is no failure of the candidate."""


@dataclass(frozen=True)
class Candidate:
    """One way to encode.

    Attributes:
        dtype: "fp32", "fp16" or "bf16": of its products, by whose peak it is judged.
        backend: a key of BACKENDS, or UPSTREAM for transformers' own module.
        options: of `BackendOptions`; provider and device "cuda" become "cpu" in a dry run.
        library: TensorRT's, for which an engine is built before.
        edits: of the CUDA provider's copy of a graph, in place of the usual ones.
        sizes: of the towers that it is timed on.
        parity: it takes part in parity on the reference checkpoint.
        in_dry_run: False for what compiles for minutes on a CPU.
    """

    name: str
    dtype: str
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    library: str | None = None
    edits: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ("2B", "8B")
    parity: bool = True
    in_dry_run: bool = True

    def backend_options(self, context: Context, model: Path) -> BackendOptions:
        """As they are on this machine."""
        values = dict(self.options)
        for name in ("provider", "device"):
            if context.dry and str(values.get(name)).startswith("cuda"):
                values[name] = "cpu"
        return BackendOptions(**{"precision": self.dtype, "model": model, **values})


CUDA, ONLY_2B = {"provider": "cuda"}, ("2B",)
# In the order in which they are worth most, since a step's time may end.
CANDIDATES = (
    Candidate("transformers fp16", "fp16", UPSTREAM, parity=False),
    Candidate("transformers bf16", "bf16", UPSTREAM, parity=False),
    Candidate("onnxruntime cuda fp16", "fp16", "onnxruntime", CUDA),
    Candidate("onnxruntime cuda fp32", "fp32", "onnxruntime", CUDA, sizes=()),
    Candidate("pytorch cuda fp16", "fp16", "pytorch", {"device": "cuda"}, in_dry_run=False),
    Candidate("tensorrt fp16", "fp16", "tensorrt", library="tensorrt", in_dry_run=False),
    Candidate("tensorrt_rtx fp16", "fp16", "tensorrt_rtx", library="tensorrt_rtx", in_dry_run=False),
    *(
        Candidate(
            f"onnxruntime cuda fp16, {name}",
            "fp16",
            "onnxruntime",
            CUDA,
            edits=edits,
            sizes=ONLY_2B,
            parity=False,
            in_dry_run=False,
        )
        for name, edits in (
            ("rotation", ("attention", "rotation")),
            ("rotation and gelu", ("attention", "rotation", "gelu")),
        )
    ),
    Candidate(
        "onnxruntime cuda-unfused fp16",
        "fp16",
        "onnxruntime",
        {"provider": "cuda-unfused"},
        sizes=ONLY_2B,
        parity=False,
        in_dry_run=False,
    ),
    Candidate("transformers fp32", "fp32", UPSTREAM, sizes=ONLY_2B, parity=False),
    Candidate(
        "pytorch cuda bf16", "bf16", "pytorch", {"device": "cuda"}, sizes=ONLY_2B, parity=False, in_dry_run=False
    ),
)


def wanted(context: Context) -> list[Candidate]:
    """Those that this run is about."""
    parts = [part.strip() for part in context.candidates.split(",") if part.strip()]
    named = [item for item in CANDIDATES if not parts or any(part in item.name for part in parts)]
    return [item for item in named if item.in_dry_run or not context.dry]


def load(candidate: Candidate, context: Context, bundle: Path, model: Path) -> EncoderBackend:
    """Load it; an engine is built first where it needs one.

    Raises:
        ContractError: it does not run here; has the reason.
    """
    if candidate.backend == UPSTREAM:
        return UpstreamEncoder(open_checkpoint(str(model)), candidate.dtype, context.device)
    if candidate.library is not None:
        build_engine(candidate, bundle)
    opened = open_bundle(bundle, verify=False)
    options = candidate.backend_options(context, model)
    if not candidate.edits:
        return load_backend(candidate.backend, opened, options)
    backend = OnnxRuntimeBackend(opened, options)  # its graphs are loaded at their first run
    backend.edits = candidate.edits
    return backend


def build_engine(candidate: Candidate, bundle: Path) -> Bundle:
    """Build a TensorRT engine for this machine's GPU into the bundle, unless it is there.

    Raises:
        NotHereError: the library is not installed, or is not the one that builds here.
        EngineError: it does not take this GPU.
    """
    from qwen3vl_edge.contract.machine.tensorrt_library import installed
    from qwen3vl_edge.export.tensorrt.build_engines import build_engines
    from qwen3vl_edge.export.tensorrt.build_job import BuildRequest

    assert candidate.library is not None
    if not installed(candidate.library):
        raise NotHereError(f"{candidate.library} is not installed", field="--backend")
    layout = "profiles" if open_bundle(bundle).manifest.has_dynamic(candidate.dtype) else "per-bucket"
    record = build_engines(bundle, BuildRequest("this-gpu", precision=candidate.dtype, layout=layout)).record
    if record.library != candidate.library:
        raise NotHereError(f"this-gpu builds with {record.library} here", field="--target")
    return open_bundle(bundle)
