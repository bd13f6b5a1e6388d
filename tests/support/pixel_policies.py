"""Policies of the reference checkpoint without buckets, as the unsplit model has them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from qwen3vl_edge.contract.bundle.grid import PatchGeometry
from qwen3vl_edge.contract.pixels.from_checkpoint import read_pixel_policy
from qwen3vl_edge.contract.pixels.policy import CHECKPOINT, qwen_vl_utils_policy
from qwen3vl_edge.edge_runtime.inputs.media import BucketPolicy
from tests.support.paths import ROOT

QWEN_PIXELS = qwen_vl_utils_policy(32)


@cache
def native_policy(folder: Path = ROOT / "reference" / "qwen3vl-tiny", name: str = CHECKPOINT) -> BucketPolicy:
    """Every picture and clip at the size that the checkpoint's pixel policy of that name gives."""
    return BucketPolicy(PatchGeometry(), None, dynamic=True, pixels=read_pixel_policy(folder, name))
