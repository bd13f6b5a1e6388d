"""The steps `export-…`: towers of released sizes with random weights, as bundles with the bench's buckets alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

from qwen3vl_edge.tools.dev.gpu.context import Context, Report

PRECISION = "fp16"


def export_size(size: str, context: Context, report: Report) -> None:
    """Write a checkpoint and its bundle: one precision and no dynamic graph, for they take most of the time."""
    import torch

    from qwen3vl_edge.export.bundle import export_bundle
    from qwen3vl_edge.tools.dev.bench.make_bundle import random_model
    from qwen3vl_edge.tools.dev.random_checkpoint import TOWERS

    torch.set_num_threads(max(1, 3 * (os.cpu_count() or 1) // 4))  # the other steps start their kernels meanwhile
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
    )
    report("exports", {"size": size, "seconds": round(time.perf_counter() - started, 1)})


def model_folder(context: Context, size: str) -> Path:
    """The checkpoint of a size."""
    return context.work / size / "model"


def bundle_folder(context: Context, size: str) -> Path:
    """The bundle of a size."""
    return context.work / size / "bundle"
