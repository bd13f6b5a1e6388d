"""The steps `export-…`: towers of released sizes with random weights, as bundles with the bench's buckets alone."""

from __future__ import annotations

import time
from pathlib import Path

from qwen3vl_edge.tools.dev.gpu.context import Context, Report

PRECISION = "fp16"


def export_size(size: str, context: Context, report: Report) -> None:
    """Write a checkpoint and its bundle, without what takes most of the time.

    One precision, no dynamic graph, and no check on the CPU: the bench compares every output itself.
    """
    from qwen3vl_edge.export.bundle import export_bundle
    from qwen3vl_edge.tools.dev.bench.make_bundle import random_model
    from qwen3vl_edge.tools.dev.random_checkpoint import TOWERS

    started = time.perf_counter()
    model = random_model(model_folder(context, size), TOWERS[size] | dict(context.sizes.tower))
    export_bundle(
        str(model),
        bundle_folder(context, size),
        image_buckets=context.sizes.image_buckets,
        video_buckets=context.sizes.video_buckets,
        precisions=(PRECISION,),
        dynamic=False,
        image_uint8=False,
        checked=False,
    )
    report("exports", {"size": size, "seconds": round(time.perf_counter() - started, 1)})


def model_folder(context: Context, size: str) -> Path:
    """The checkpoint of a size."""
    return context.work / size / "model"


def bundle_folder(context: Context, size: str) -> Path:
    """The bundle of a size."""
    return context.work / size / "bundle"
