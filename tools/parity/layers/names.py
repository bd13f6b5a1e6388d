"""Names of the encoder's intermediate activations, in order: graph tensors that PyTorch's modules have too.

A name is the tensor's name in the ONNX graph (`export/onnx/encoder_graph.py`), which is the module's name in
the checkpoint where one module makes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.tools.parity.samples import Case

# Inside a block, in order; those marked False only an ONNX graph has by itself.
BLOCK_PARTS = {
    "norm1": True,
    "attn.qkv": True,
    "attn.qk.rotated": False,
    "attn.scores": False,
    "attn.softmax": False,
    "attn.flat": True,
    "attn.proj": True,
    "attn.residual": True,
    "norm2": True,
    "mlp.linear_fc1": True,
    "mlp.act": True,
    "mlp.linear_fc2": True,
    "mlp.residual": True,
}
# What SmoothQuant rescales per channel (`calibration/smoothing.py`): not the same values as in PyTorch, by design.
SMOOTHED_PARTS = ("norm", "norm1", "norm2", "attn.qkv", "attn.flat")
MERGER_PARTS = ("norm", "linear_fc1", "act", "linear_fc2")
EMBED_PARTS = ("patch_embed.proj", "pos_embed.flat")
# Descriptions for readers, where the name is not enough.
MEANING = {
    "attn.flat": "attention: rotary, scores, softmax and mix",
    "attn.qk.rotated": "rotary of queries and keys",
    "attn.residual": "residual addition after attention",
    "mlp.residual": "residual addition after the MLP",
    "pos_embed.flat": "learned positions added",
}
_OUTPUT = re.compile(r"embeds|deepstack\.\d+")


class LayerSource(Protocol):
    """A source of the encoder's intermediate activations."""

    label: str

    def offers(self, layer: str) -> bool:
        """Whether `run` can give this layer."""
        ...

    def serves(self, case: Case) -> bool:
        """Whether it takes this case."""
        ...

    def run(self, case: Case, layers: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Activations by name, in the precision computed: [patches, width], mergers' [tokens, width]."""
        ...


def stream_layers(vision: VisionSpec) -> list[str]:
    """The residual stream after each half of each block, and each merger after the block that feeds it."""
    names = ["pos_embed.flat"]
    for block in range(vision.depth):
        names += [f"blocks.{block}.attn.residual", f"blocks.{block}.mlp.residual"]
        names += [f"{merger}.linear_fc2" for merger in _mergers_after(vision, block)]
    return names


def branch_layers(vision: VisionSpec) -> list[str]:
    """The stream, the output of each branch, where a fault is visible before the stream dilutes it, and the outputs.

    The outputs have names of their own: two of them may be swapped after all layers were right.
    """
    names = list(EMBED_PARTS)
    for block in range(vision.depth):
        names += [f"blocks.{block}.{part}" for part in ("attn.proj", "attn.residual", "mlp.linear_fc2", "mlp.residual")]
        names += [f"{merger}.linear_fc2" for merger in _mergers_after(vision, block)]
    return [*names, *vision.output_names]


def layers_within(module: str) -> list[str]:
    """All layers of one module, in order."""
    if module == "patch_embed":
        return list(EMBED_PARTS)
    if _OUTPUT.fullmatch(module):
        return [module]
    return [f"{module}.{part}" for part in (BLOCK_PARTS if module.startswith("blocks.") else MERGER_PARTS)]


def module_of(layer: str) -> str:
    """`blocks.3` of `blocks.3.attn.proj`, `merger` of `merger.norm`, `patch_embed` of everything before the blocks.

    An output is a module of its own.
    """
    if _OUTPUT.fullmatch(layer):
        return layer
    match = re.match(r"blocks\.\d+|deepstack_merger_list\.\d+|merger", layer)
    return match.group() if match else "patch_embed"


def part_of(layer: str) -> str:
    """A layer's name without its module: `attn.proj`."""
    return layer.removeprefix(f"{module_of(layer)}.")


def _mergers_after(vision: VisionSpec, block: int) -> list[str]:
    names = []
    if block in vision.deepstack_visual_indexes:
        names.append(f"deepstack_merger_list.{vision.deepstack_visual_indexes.index(block)}")
    return [*names, "merger"] if block == vision.depth - 1 else names
