"""Samples that a quantized encoder is measured with: observed ones, held-out ones, and drawn ones at every bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3vl_edge.calibration.samples import Selection, Source, stream_samples
from qwen3vl_edge.calibration.stage_runner import Array, Observe, StageRunner
from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.bundle.golden import dynamic_golden_grids, golden_input
from qwen3vl_edge.contract.bundle.manifest import PrecisionSet, VisionSpec
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.export.onnx.check import CheckCase, dynamic_check_grids
from qwen3vl_edge.export.onnx.check_pixels import drawn_input

REAL_SAMPLES = 4


@dataclass(frozen=True)
class ValidationSample:
    """A picture or clip, and the encoder's outputs by name without quantization.

    Attributes:
        held_out: no range of quantization was taken from it; float16 must hold its values too.
    """

    input: EncoderInput
    outputs: dict[str, Array]
    held_out: bool

    def check_case(self, spec: VisionSpec) -> CheckCase:
        """This sample as a case of a graph's check."""
        return CheckCase(self.input, [self.outputs[name] for name in spec.output_names])


def validation_samples(
    bundle: Bundle,
    base: PrecisionSet,
    runner: StageRunner,
    observed: Sequence[Source],
    held_out: Sequence[Source],
    policy: BucketPolicy,
    observe: Observe | None = None,
) -> list[ValidationSample]:
    """The first of the observed samples, held-out ones, and drawn ones."""
    found = []
    for sources, held in ((observed, False), (held_out, True)):
        for _, samples in stream_samples(sources, bundle, policy, Selection(), REAL_SAMPLES):
            found += [ValidationSample(item.input, runner.run(item.input, observe).outputs, held) for item in samples]
    manifest = bundle.manifest
    grids = manifest.buckets(base.precision)
    if manifest.has_dynamic(base.precision):
        grids += dynamic_check_grids(grids, manifest.vision.merge_size)
    inputs = [drawn_input(grid, manifest.vision, manifest.preprocessing, index) for index, grid in enumerate(grids)]
    return found + [ValidationSample(item, runner.run(item, observe).outputs, True) for item in inputs]


def golden_samples(bundle: Bundle, base: PrecisionSet, runner: StageRunner) -> list[ValidationSample]:
    """The golden picture of every bucket, and those of the dynamic-shape graph."""
    manifest = bundle.manifest
    grids = manifest.buckets(base.precision)
    if manifest.has_dynamic(base.precision):
        grids += dynamic_golden_grids(manifest.vision, grids)
    inputs = [golden_input(grid, manifest.vision, manifest.preprocessing) for grid in grids]
    return [ValidationSample(item, runner.run(item).outputs, True) for item in inputs]
