"""The steps `encoder-…`: every candidate that starts, on every bucket, held against transformers in fp32."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.distance import distance
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.edge_runtime.encoder.protocol import EncoderBackend
from qwen3vl_edge.tools.dev.bench.roofline import encoder_cost
from qwen3vl_edge.tools.dev.gpu.candidates import Candidate, load, wanted
from qwen3vl_edge.tools.dev.gpu.context import Context, Report, reason
from qwen3vl_edge.tools.dev.gpu.exports import bundle_folder, model_folder
from qwen3vl_edge.tools.dev.gpu.timing import repeat, wall_seconds
from qwen3vl_edge.tools.dev.gpu.upstream import UpstreamEncoder

VALUE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
Outputs = list[NDArray[np.float32]]


def bench_encoder(size: str, context: Context, report: Report) -> None:
    """A row for each candidate and bucket; one that ended the process before is told so and not tried again."""
    bundle = open_bundle(bundle_folder(context, size))
    vision, grids = bundle.manifest.vision, bundle.manifest.buckets()
    pixels = {grid: _pixels(grid, vision) for grid in grids}
    references = _references(context, size, pixels)
    peaks = next(iter(context.rows("environment", "peaks")), {})
    begun = [row["candidate"] for row in context.rows(f"encoder-{size}", "begun")]
    ended = [row["candidate"] for row in context.rows(f"encoder-{size}", "ended")]
    for candidate in (item for item in wanted(context) if size in item.sizes and item.name not in ended):
        row = {"size": size, "candidate": candidate.name}
        if candidate.name in begun:
            report("encoder", {**row, "failed": "it ended the process"})
        else:
            report("begun", row)
            for measured in _measure(candidate, size, context, pixels, references, vision, peaks):
                report("encoder", {**row, **measured})
        report("ended", row)


def _measure(
    candidate: Candidate,
    size: str,
    context: Context,
    pixels: Mapping[Grid, NDArray[np.float32]],
    references: Mapping[Grid, Outputs],
    vision: VisionSpec,
    peaks: dict[str, Any],
) -> Any:
    """The rows of one candidate, as they come."""
    started = time.perf_counter()
    try:
        backend = load(candidate, context, bundle_folder(context, size), model_folder(context, size))
    except Exception as error:  # a library's failure is a row
        yield {"failed": reason(error)}
        return
    load_seconds = time.perf_counter() - started
    for grid, values in pixels.items():
        place = {"bucket": str(grid), "tokens": grid.tokens(vision.merge_size), "dtype": candidate.dtype}
        cost = encoder_cost(vision, grid, VALUE_BYTES[candidate.dtype])
        floor = cost.floor(peaks[candidate.dtype], peaks["bytes"]) if peaks else None
        try:
            measured = _on_grid(backend, grid, values, references[grid], context)
        except Exception as error:
            yield {**place, "failed": reason(error)}
            continue
        yield {**place, **measured, "floor_seconds": floor, "flops": cost.flops, "load_seconds": round(load_seconds, 2)}
    backend.close()
    del backend
    _free()


def _on_grid(
    backend: EncoderBackend, grid: Grid, pixels: NDArray[np.float32], reference: Outputs, context: Context
) -> dict[str, Any]:
    started = time.perf_counter()
    first = backend.run(grid, pixels)
    first_seconds = time.perf_counter() - started
    outputs = [array.astype(np.float32) for array in (first.embeds, *first.deepstack)]
    cosines = [distance(own, want).cosine for own, want in zip(outputs, reference, strict=True)]
    host = repeat(lambda: wall_seconds(lambda: backend.run(grid, pixels)), context.sizes)
    again = backend.run(grid, pixels)
    on_device = getattr(backend, "device_seconds", None)
    timed = on_device is not None and on_device(grid, pixels) is not None  # None: no time of the device's own
    device = repeat(lambda: float(on_device(grid, pixels)), context.sizes) if on_device and timed else []
    return {
        "median_seconds": statistics.median(host),
        "spread": [min(host), max(host)],
        "runs": len(host),
        "device_median_seconds": statistics.median(device) if device else None,
        "first_seconds": round(first_seconds, 2),
        "lowest_cosine": min(cosines),
        "cosines": cosines,
        "finite": all(bool(np.isfinite(array).all()) for array in outputs),
        "same_again": all(
            np.array_equal(one, other)
            for one, other in zip((first.embeds, *first.deepstack), (again.embeds, *again.deepstack), strict=True)
        ),
    }


def _references(context: Context, size: str, pixels: Mapping[Grid, NDArray[np.float32]]) -> dict[Grid, Outputs]:
    """transformers in fp32 without TF32, on the device."""
    checkpoint = open_checkpoint(str(model_folder(context, size)))
    encoder = UpstreamEncoder(checkpoint, "fp32", context.device)
    found = {}
    for grid, values in pixels.items():
        embeddings = encoder.run(grid, values)
        found[grid] = [embeddings.embeds, *embeddings.deepstack]
    encoder.close()
    del encoder
    _free()
    return found


def _pixels(grid: Grid, vision: VisionSpec) -> NDArray[np.float32]:
    """float32 [patches, patch values]."""
    return np.random.default_rng(0).standard_normal((grid.patches, vision.patch_values)).astype(np.float32)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
