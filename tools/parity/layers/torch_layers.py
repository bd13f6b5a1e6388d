"""Intermediate activations of transformers' encoder, under the names of the same values in the ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.edge_runtime.backends.pytorch import PytorchBackend
from qwen3vl_edge.tools.parity.layers.names import BLOCK_PARTS, MERGER_PARTS, module_of, part_of
from qwen3vl_edge.tools.parity.samples import Case

# Values that are no module's output, but the input of one.
_INPUT_OF = {"attn.flat": "attn.proj", "attn.residual": "norm2", "mlp.act": "mlp.linear_fc2", "act": "linear_fc2"}


class TorchLayers:
    """The reference's activations in fp32, from forward hooks."""

    label = "PyTorch fp32"

    def __init__(self, backend: PytorchBackend, vision: VisionSpec) -> None:
        self._backend, self._vision = backend, vision

    def offers(self, layer: str) -> bool:
        part = part_of(layer)
        if layer in self._vision.output_names:
            return True
        return BLOCK_PARTS.get(part, False) or part in MERGER_PARTS or layer in ("patch_embed.proj", "pos_embed.flat")

    def serves(self, case: Case) -> bool:
        return True

    def run(self, case: Case, layers: Sequence[str]) -> dict[str, NDArray[Any]]:
        activations: dict[str, NDArray[Any]] = {}
        outputs = self._vision.output_names
        hooks = [self._watch(layer, activations) for layer in layers if layer not in outputs]
        try:
            embeddings = self._backend.run(case.grid, case.input.pixel_values)
        finally:
            for hook in hooks:
                hook.remove()
        named = zip(outputs, (embeddings.embeds, *embeddings.deepstack), strict=True)
        return activations | {name: array for name, array in named if name in layers}

    def _watch(self, layer: str, activations: dict[str, NDArray[Any]]) -> Any:
        module, takes_input = self._module_of(layer)

        def store(value: torch.Tensor) -> None:
            activations[layer] = self._as_in_graph(layer, value.detach().clone()).numpy()

        if takes_input:
            return module.register_forward_pre_hook(lambda _, inputs: store(inputs[0]))
        return module.register_forward_hook(lambda _, inputs, output: store(output))

    def _module_of(self, layer: str) -> tuple[Any, bool]:
        """The module to hook, and whether the name means its input."""
        find = self._backend.module.get_submodule
        if layer == "patch_embed.proj":
            return find("patch_embed"), False  # the convolution itself returns [patches, width, 1, 1, 1]
        if layer == "pos_embed.flat":
            return find("blocks.0"), True
        module, part = module_of(layer), part_of(layer)
        if part == "mlp.residual":
            return find(module), False
        if part in _INPUT_OF:
            return find(f"{module}.{_INPUT_OF[part]}"), True
        return find(layer), False

    def _as_in_graph(self, layer: str, value: torch.Tensor) -> torch.Tensor:
        """The graph's queries carry the attention scale already (`export/onnx/weights.py`)."""
        if part_of(layer) == "attn.qkv":
            value[:, : self._vision.hidden_size] *= self._vision.head_dim**-0.5
        return value
