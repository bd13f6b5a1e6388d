"""Largest values of every layer of the PyTorch encoder while it runs, for `export/onnx/headroom.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.export.onnx.headroom import LayerRanges, Vector, layers
from qwen3vl_edge.export.onnx.quantization import is_scores
from qwen3vl_edge.export.onnx.weights import PATCH_EMBEDDING


@contextmanager
def observed(encoder: Any, spec: VisionSpec) -> Iterator[LayerRanges]:
    """The ranges of the runs within the block, as the graph has them: with the attention's scale in the queries."""
    ranges = LayerRanges()
    handles = []
    for layer in layers(spec):
        if not is_scores(layer):
            hook = _observe_qkv if layer.endswith("attn.qkv") else _observe
            handles.append(encoder.get_submodule(layer).register_forward_hook(partial(hook, ranges, spec, layer)))
    try:
        yield ranges
    finally:
        for handle in handles:
            handle.remove()


def largest_weights(encoder: Any, spec: VisionSpec) -> dict[str, float]:
    """Largest magnitude of each linear's weights and biases as the weights file has them."""
    found = {}
    for layer in layers(spec):
        if not is_scores(layer):
            module = encoder.get_submodule(layer)
            weight, bias = module.weight.detach(), module.bias.detach()
            found[layer] = max(float(weight.abs().max()), float(bias.abs().max()))
            if layer == PATCH_EMBEDDING:  # [out, channels, frames, patch, patch]; the uint8 graph sums the frames
                found[layer] = max(found[layer], float(weight.sum(dim=2).abs().max()))
    return found


def _observe(ranges: LayerRanges, spec: VisionSpec, layer: str, module: Any, inputs: tuple[Any], output: Any) -> None:
    bias = module.bias.detach().abs()
    ranges.see(layer, _largest(inputs[0], inputs[0].shape[-1]), _largest(output, len(bias)) + bias.numpy())


def _observe_qkv(
    ranges: LayerRanges, spec: VisionSpec, layer: str, module: Any, inputs: tuple[Any], output: Any
) -> None:
    import torch

    scaled, bias = output.detach().clone(), module.bias.detach().abs().clone()
    for part in (scaled, bias):
        part[..., : spec.hidden_size] *= spec.head_dim**-0.5
    ranges.see(layer, _largest(inputs[0], inputs[0].shape[-1]), _largest(scaled, len(bias)) + bias.numpy())
    # The rotary embedding turns a pair of channels and keeps its length, so that no rotated value exceeds it.
    pairs = scaled[:, : 2 * spec.hidden_size].reshape(-1, 2, spec.num_heads, 2, spec.head_dim // 2)
    lengths = torch.linalg.vector_norm(pairs, dim=3, keepdim=True)
    rotated = lengths.amax(dim=0).expand(-1, -1, 2, -1).reshape(-1)
    # |q·k| <= |q| |k|: the longest query of each head times the longest key.
    queries, keys = torch.linalg.vector_norm(lengths, dim=(3, 4)).amax(dim=0)
    bound = np.array([float((queries * keys).max())], np.float32)
    ranges.see(layer.replace("qkv", "scores"), rotated.numpy(), bound)


def _largest(values: Any, channels: int) -> Vector:
    """float32 [channels] of [rows, channels, ...]: a convolution's output has axes of length 1 after it."""
    largest: Vector = values.detach().reshape(-1, channels).abs().amax(dim=0).numpy()
    return largest
