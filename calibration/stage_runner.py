"""The encoder run stage by stage in ONNX Runtime, so that the input of every product can be observed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.calibration.quantized_weights import SourceWeights, write_quantized_weights
from qwen3vl_edge.calibration.smoothing import Smoothing
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.position_tables import position_inputs
from qwen3vl_edge.contract.bundle.precision import ORT_DISABLED_OPTIMIZERS
from qwen3vl_edge.contract.machine.cpu_threads import cpu_threads
from qwen3vl_edge.export.onnx.quantization import NOT_QUANTIZED, Quantization, is_scores, quantizable
from qwen3vl_edge.export.onnx.stage_graphs import (
    PATCHES,
    largest_name,
    observed_name,
    output_of,
    stage_graph,
    stage_of,
    stages,
)
from qwen3vl_edge.export.onnx.weights import PATCH_EMBEDDING

Array = NDArray[Any]
Observe = Callable[[str, Array, Array], None]
"""Gets a layer's name, what it reads [rows, channels], and the largest magnitude of what it gives, float32 [channels],
with its bias's added, as `LayerRanges` in `export/onnx/headroom.py` has it."""


@dataclass(frozen=True)
class Trace:
    """One run: what entered each stage, and the encoder's outputs by name."""

    entered: dict[str, Array]
    outputs: dict[str, Array]


class StageRunner:
    """Sessions of the stages of one encoder; used as a context manager.

    Args:
        source: the weights.
        precision: "fp32" or "fp16", which the stages compute in.
        threads: of ONNX Runtime, 0 for its choice.
        float32: in "fp16", the layers that stay float32.
    """

    def __init__(
        self, spec: VisionSpec, source: SourceWeights, precision: str, threads: int = 0, float32: Collection[str] = ()
    ) -> None:
        self.spec, self.precision, self._float32 = spec, precision, float32
        self._source, self._threads = source, threads
        self._folder = tempfile.TemporaryDirectory(prefix="qwen3vl-stages-")
        self._plain = {stage: self.quantized(stage, NOT_QUANTIZED, ()) for stage in stages(spec)}

    def __enter__(self) -> StageRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._plain.clear()
        self._folder.cleanup()

    def run(self, item: EncoderInput, observe: Observe | None = None) -> Trace:
        """Run all stages."""
        return self.resume(item.grid, PATCHES, item.pixel_values, observe=observe)

    def resume(
        self,
        grid: Grid,
        first: str,
        hidden: Array,
        *,
        replaced: dict[str, Any] | None = None,
        observe: Observe | None = None,
    ) -> Trace:
        """Run from a stage on.

        Args:
            first: the stage to start with.
            hidden: what enters it (`Trace.entered`).
            replaced: sessions to use in place of plain stages, from `quantized`.
        """
        entered: dict[str, Array] = {}
        outputs: dict[str, Array] = {}
        tables = position_inputs(self.spec, grid)
        names = list(stages(self.spec))
        for stage in names[names.index(first) :]:
            entered[stage] = hidden
            session = (replaced or {}).get(stage, self._plain[stage])
            produced = self._run_stage(session, stage, tables, hidden, observe)
            if stage == PATCHES or stage.startswith("blocks."):
                hidden = produced
            else:
                outputs[output_of(self.spec, stage)] = produced
        return Trace(entered, outputs)

    def quantized(self, stage: str, quantization: Quantization, smoothing: Sequence[Smoothing]) -> Any:
        """A session of a stage with the products that `quantization` names quantized."""
        import onnxruntime as ort

        settings = ort.SessionOptions()
        settings.intra_op_num_threads = cpu_threads(self._threads)
        settings.log_severity_level = 3
        settings.enable_cpu_mem_arena = False  # so that the memory of one large picture is freed
        with tempfile.TemporaryDirectory(prefix="stage-", dir=self._folder.name) as name:
            weights, graph = Path(name) / "weights.bin", Path(name) / "stage.onnx"
            source = self._source.of_stage(stage)
            stored = write_quantized_weights(
                source, quantization, smoothing, self.precision, weights, float32_layers=self._float32
            )
            model = stage_graph(
                self.spec, stage, self.precision, stored, weights.name, quantization, self._float32
            ).model
            graph.write_bytes(model.SerializeToString())
            return ort.InferenceSession(
                str(graph),
                settings,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=set(ORT_DISABLED_OPTIMIZERS[quantization.kind]),
            )

    def _run_stage(
        self, session: Any, stage: str, tables: dict[str, Array], hidden: Array, observe: Observe | None
    ) -> Array:
        feeds: dict[str, Array] = {"pixel_values" if stage == PATCHES else "hidden": hidden}
        if stage == PATCHES:
            feeds |= {name: tables[name] for name in ("position_indices", "position_weights")}
        elif stage.startswith("blocks."):
            feeds |= {name: tables[name] for name in ("rotary_cos", "rotary_sin")}
        if observe is None:
            return session.run(["out"], feeds)[0]  # type: ignore[no-any-return]
        names = [PATCH_EMBEDDING] if stage == PATCHES else [x for x in quantizable(self.spec) if stage_of(x) == stage]
        read = [] if stage == PATCHES else [observed_name(layer) for layer in names]
        out, *values = session.run(["out", *read, *(largest_name(layer) for layer in names)], feeds)
        reads = values[: len(read)] or [hidden]
        for layer, inputs, largest in zip(names, reads, values[len(read) :], strict=True):
            bias = 0.0 if is_scores(layer) else np.abs(self._source.read(f"{layer}.bias"))
            observe(layer, inputs, largest + bias)
        return out  # type: ignore[no-any-return]
