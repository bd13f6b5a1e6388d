"""Runs first in each of vLLM's processes: declares operators that its torchvision extends and its CPU torch lacks."""

import torch

LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # kept: what it defines is gone when it is freed
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
