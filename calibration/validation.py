"""Samples that a quantized encoder is measured with: real ones, and a drawn picture at every bucket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.calibration.samples import Selection, Source, stream_samples
from qwen3vl_edge.calibration.stage_runner import StageRunner, Trace
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import PrecisionSet, VisionSpec
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from qwen3vl_edge.export.onnx.check import CheckCase, dynamic_check_grids
from qwen3vl_edge.export.onnx.check_pixels import draw_frames, patch_values

REAL_SAMPLES = 4


@dataclass(frozen=True)
class ValidationSample:
    """A picture or clip and its run without quantization; `frames` where it is a drawn one."""

    grid: Grid
    pixel_values: NDArray[np.float32]
    trace: Trace
    frames: NDArray[np.uint8] | None = None

    def check_case(self, spec: VisionSpec) -> CheckCase:
        """This sample as a case of a graph's check."""
        outputs = [self.trace.outputs[name] for name in spec.output_names]
        return CheckCase(self.grid, self.frames, self.pixel_values, outputs)


def validation_samples(
    bundle: Bundle, base: PrecisionSet, runner: StageRunner, sources: Sequence[Source], policy: BucketPolicy
) -> list[ValidationSample]:
    """Real samples from the end of the data (with more data than samples, none of it was observed), then drawn ones."""
    validation = []
    for _, samples in stream_samples(sources[::-1], bundle, policy, Selection(), REAL_SAMPLES):
        for item in samples:
            validation.append(ValidationSample(item.grid, item.pixel_values, runner.run(item.grid, item.pixel_values)))
    manifest = bundle.manifest
    grids = manifest.buckets(base.precision)
    if manifest.has_dynamic(base.precision):
        grids += dynamic_check_grids(grids, manifest.vision.merge_size)
    for index, grid in enumerate(grids):
        frames = draw_frames(grid, manifest.vision, seed=index)
        pixels = patch_values(frames, grid, manifest.vision, manifest.preprocessing)
        validation.append(ValidationSample(grid, pixels, runner.run(grid, pixels), frames))
    return validation
