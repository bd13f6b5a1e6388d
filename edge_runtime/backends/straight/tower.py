"""The encoder from patches to embeddings, straight in PyTorch; in the order of the model.

Computes what the ONNX graphs compute (export/onnx/encoder_graph.py), which follow `Qwen3VLVisionModel.forward`
(transformers 5.24, modeling_qwen3_vl.py). In float16 and bfloat16, weights and matrix products are of that type;
norms, softmax, GELU, rotary embedding and the residual stream are float32. Upstream's module in a half type rounds the
residual stream too, reads sizes back from the GPU within each picture, and launches some 40 kernels a block.

Every grid runs the same four steps: `embed`, `block` for each layer, `deepstack` for some, `merge`. They are plain
functions of tensors, so that a compiler sees each once and not once a layer. A block ends with the norm of the next
one, since the last sum of a block and that norm are one kernel when they are compiled together.

Activations are [frames, patches per frame, width]: attention does not cross frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import VisionSpec
from qwen3vl_edge.contract.bundle.position_tables import position_interpolation, rotary_cos_sin
from qwen3vl_edge.edge_runtime.backends.straight.activations import Activation, activation

EPSILON = 1e-6


class Linear(NamedTuple):
    """Weight [out, in] and bias [out], in the type of the products."""

    weight: Tensor
    bias: Tensor


class Norm(NamedTuple):
    """Weight and bias of a LayerNorm, float32."""

    weight: Tensor
    bias: Tensor


class Block(NamedTuple):
    """One layer without its first norm, and the norm that follows it: the next layer's first, or the merger's."""

    qkv: Linear
    proj: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear
    next_norm: Norm


class Merger(NamedTuple):
    """merge² patches to one visual token."""

    fc1: Linear
    fc2: Linear


class Tables(NamedTuple):
    """What a grid fixes, of one frame, float32: positions [P, width]; cos and signed sin [P, 1, 1, head width]."""

    positions: Tensor
    cos: Tensor
    sin: Tensor


def embed(pixels: Tensor, patch_embed: Linear, positions: Tensor, first_norm: Norm) -> tuple[Tensor, Tensor]:
    """Patches float32 [frames, P, patch values] to the residual stream, and its norm for the first block."""
    hidden = F.linear(pixels.to(patch_embed.weight.dtype), *patch_embed) + positions
    return hidden, norm(hidden, first_norm, patch_embed.weight.dtype)


def block(
    hidden: Tensor, normed: Tensor, weights: Block, cos: Tensor, sin: Tensor, heads: int, act: Activation
) -> tuple[Tensor, Tensor]:
    """Attention, then MLP, each added to the float32 residual stream; and the norm of what comes after it."""
    kind = normed.dtype
    hidden = hidden + attention(normed, weights.qkv, weights.proj, cos, sin, heads)
    inner = act(F.linear(norm(hidden, weights.norm2, kind), *weights.fc1))
    hidden = hidden + F.linear(inner, *weights.fc2)
    return hidden, norm(hidden, weights.next_norm, kind)


def attention(normed: Tensor, qkv: Linear, proj: Linear, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Full attention among the patches of each frame."""
    frames, patches, width = normed.shape
    split = F.linear(normed, *qkv).view(frames, patches, 3, heads, width // heads)
    rotated = rotate(split[:, :, :2], cos, sin)
    # [frames, P, heads, head width] -> [frames, heads, P, head width]
    queries, keys, values = (part.transpose(1, 2) for part in (rotated[:, :, 0], rotated[:, :, 1], split[:, :, 2]))
    mixed = F.scaled_dot_product_attention(queries, keys, values)
    return F.linear(mixed.transpose(1, 2).reshape(frames, patches, width), *proj)


def rotate(qk: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x·cos + swap_halves(x)·signed sin in float32, for queries and keys at once."""
    x = qk.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((second, first), dim=-1) * sin).to(qk.dtype)


def deepstack(hidden: Tensor, after_shuffle: Norm, merger: Merger) -> Tensor:
    """A DeepStack level [tokens, D]: the norm is taken of merge² patches side by side."""
    merged = hidden.view(-1, after_shuffle.weight.shape[0])
    return merge(norm(merged, after_shuffle, merger.fc1.weight.dtype), merger)


def merge(normed: Tensor, merger: Merger) -> Tensor:
    """merge² normed patches side by side through an MLP: [tokens, D]."""
    side_by_side = normed.view(-1, merger.fc1.weight.shape[1])
    return F.linear(F.gelu(F.linear(side_by_side, *merger.fc1)), *merger.fc2)


def norm(x: Tensor, weights: Norm, kind: torch.dtype) -> Tensor:
    """LayerNorm in float32, its output in the type of the products."""
    return F.layer_norm(x, weights.weight.shape, weights.weight, weights.bias, EPSILON).to(kind)


@dataclass(frozen=True)
class Steps:
    """The four steps as a tower runs them: the functions above, or compiled copies of them."""

    embed: Callable[..., tuple[Tensor, Tensor]] = embed
    block: Callable[..., tuple[Tensor, Tensor]] = block
    deepstack: Callable[..., Tensor] = deepstack
    merge: Callable[..., Tensor] = merge


PLAIN = Steps()


class StraightTower:
    """The weights of an encoder on one device, in one type, and its outputs for any grid.

    Args:
        tensors: the encoder's, by `Qwen3VLVisionModel`'s names; each is copied before the next is asked for.
        kind: torch.float32, torch.float16 or torch.bfloat16: of weights and products.
    """

    def __init__(
        self, spec: VisionSpec, tensors: Iterable[tuple[str, Tensor]], kind: torch.dtype, device: torch.device
    ) -> None:
        self.spec, self.kind, self.device = spec, kind, device
        state = {name: tensor.to(device, self._stored(name)) for name, tensor in tensors}
        self._patch_embed = Linear(
            state["patch_embed.proj.weight"].reshape(spec.hidden_size, -1), state["patch_embed.proj.bias"]
        )
        self._act = activation(spec.hidden_act)
        self._position_table = state["pos_embed.weight"]
        self._first_norm = _norm(state, "blocks.0.norm1")
        self._blocks = [_block(state, layer, spec.depth) for layer in range(spec.depth)]
        self._merger = _merger(state, "merger")
        self._levels = {
            layer: (
                _norm(state, f"deepstack_merger_list.{level}.norm"),
                _merger(state, f"deepstack_merger_list.{level}"),
            )
            for level, layer in enumerate(spec.deepstack_visual_indexes)
        }
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the weights are there, whichever stream reads them

    def tables(self, grid: Grid) -> Tables:
        """The constants of a grid, on the tower's device."""
        spec = self.spec
        indices, weights = position_interpolation(grid, spec.merge_size, spec.num_position_embeddings)
        rows = self._position_table[torch.from_numpy(indices).to(self.device)]
        positions = (rows * torch.from_numpy(weights).to(self.device)[:, :, None]).sum(1)
        cos, sin = (
            torch.from_numpy(table).to(self.device)[:, None, None, :]
            for table in rotary_cos_sin(grid, spec.merge_size, spec.head_dim, spec.rope_theta)
        )
        return Tables(positions, cos, sin)

    def run(self, grid: Grid, pixels: Tensor, tables: Tables, steps: Steps = PLAIN) -> tuple[Tensor, ...]:
        """Encode one picture or clip.

        Args:
            pixels: float32 [t·h·w, patch values] on the tower's device.

        Returns:
            embeds, then the DeepStack levels, [tokens, D] each, in the type of the products; float32 in place of
            bfloat16, which numpy does not have.
        """
        spec = self.spec
        pixels = pixels.view(grid.t, grid.patches_per_frame, spec.patch_values)
        hidden, normed = steps.embed(pixels, self._patch_embed, tables.positions, self._first_norm)
        levels = []
        for layer, weights in enumerate(self._blocks):
            hidden, normed = steps.block(hidden, normed, weights, tables.cos, tables.sin, spec.num_heads, self._act)
            if layer in self._levels:
                levels.append(steps.deepstack(hidden, *self._levels[layer]))
        outputs = (steps.merge(normed, self._merger), *levels)
        return tuple(output.float() for output in outputs) if self.kind is torch.bfloat16 else outputs

    def _stored(self, name: str) -> torch.dtype:
        """Norms and the position table belong to the residual stream."""
        return torch.float32 if ".norm" in name or name.startswith("pos_embed") else self.kind


def _linear(state: Mapping[str, Tensor], name: str) -> Linear:
    return Linear(state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state: Mapping[str, Tensor], name: str) -> Norm:
    return Norm(state[f"{name}.weight"], state[f"{name}.bias"])


def _merger(state: Mapping[str, Tensor], name: str) -> Merger:
    return Merger(_linear(state, f"{name}.linear_fc1"), _linear(state, f"{name}.linear_fc2"))


def _block(state: Mapping[str, Tensor], layer: int, depth: int) -> Block:
    name = f"blocks.{layer}"
    return Block(
        _linear(state, f"{name}.attn.qkv"),
        _linear(state, f"{name}.attn.proj"),
        _norm(state, f"{name}.norm2"),
        _linear(state, f"{name}.mlp.linear_fc1"),
        _linear(state, f"{name}.mlp.linear_fc2"),
        _norm(state, f"blocks.{layer + 1}.norm1" if layer + 1 < depth else "merger.norm"),
    )
