"""Samples that a quantized encoder is measured with: observed ones, held-out ones, and others that no data has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwen3vl_edge.calibration.other_kinds import texture_inputs
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
CALIBRATION, HELD_OUT, DRAWN, OTHER_KINDS = KINDS = ("calibration", "held-out", "drawn", "other kinds")


@dataclass(frozen=True)
class ValidationSample:
    """A picture or clip, and the encoder's outputs by name without quantization.

    Attributes:
        pictures: CALIBRATION, of which ranges of quantization are taken; HELD_OUT, others of the data; DRAWN, with
            edges, text and grain; or OTHER_KINDS, textures. float16 must hold the values of all.
    """

    input: EncoderInput
    outputs: dict[str, Array]
    pictures: str

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
    """The first of the observed samples, held-out ones, and drawn ones at every bucket."""
    found = []
    for sources, pictures in ((observed, CALIBRATION), (held_out, HELD_OUT)):
        for _, samples in stream_samples(sources, bundle, policy, Selection(), REAL_SAMPLES):
            for item in samples:
                found.append(ValidationSample(item.input, runner.run(item.input, observe).outputs, pictures))
    manifest = bundle.manifest
    grids = manifest.buckets(base.precision)
    if manifest.has_dynamic(base.precision):
        grids += dynamic_check_grids(grids, manifest.vision.merge_size)
    inputs = [drawn_input(grid, manifest.vision, manifest.preprocessing, index) for index, grid in enumerate(grids)]
    return found + [ValidationSample(item, runner.run(item, observe).outputs, DRAWN) for item in inputs]


def texture_samples(
    bundle: Bundle, base: PrecisionSet, runner: StageRunner, observe: Observe | None = None
) -> list[ValidationSample]:
    """Textures, at the image buckets in turn; products are chosen by them, and graphs are not measured with them."""
    manifest = bundle.manifest
    grids = manifest.buckets(base.precision)
    if manifest.has_dynamic(base.precision):
        grids += dynamic_check_grids(grids, manifest.vision.merge_size)
    images = [grid for grid in grids if grid.t == 1]
    inputs = texture_inputs(images, manifest.vision, manifest.preprocessing) if images else []
    return [ValidationSample(item, runner.run(item, observe).outputs, OTHER_KINDS) for item in inputs]


def golden_samples(bundle: Bundle, base: PrecisionSet, runner: StageRunner) -> list[ValidationSample]:
    """The golden picture of every bucket, and those of the dynamic-shape graph."""
    manifest = bundle.manifest
    grids = manifest.buckets(base.precision)
    if manifest.has_dynamic(base.precision):
        grids += dynamic_golden_grids(manifest.vision, grids)
    inputs = [golden_input(grid, manifest.vision, manifest.preprocessing) for grid in grids]
    return [ValidationSample(item, runner.run(item).outputs, DRAWN) for item in inputs]
