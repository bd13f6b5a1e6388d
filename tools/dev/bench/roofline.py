"""How fast the encoder could be at best: its products and its bytes, counted, over what the machine can do.

FLOPs count a multiply and an add as two, of matrix products alone (as torch's FlopCounterMode does, against which
the test holds them). Bytes are what must move at least: every weight once, pixels in, embeddings out.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import VisionSpec


@dataclass(frozen=True)
class EncoderCost:
    """What one picture costs."""

    flops: int
    weights: int
    bytes_in: int
    bytes_out: int

    def floor(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Seconds that no implementation can beat: the slower of computing and moving (Williams et al. 2009)."""
        moved = self.weights + self.bytes_in + self.bytes_out
        return max(self.flops / flops_per_second, moved / bytes_per_second)


def encoder_cost(spec: VisionSpec, grid: Grid, value_bytes: int) -> EncoderCost:
    """FLOPs and bytes of encoding one picture or clip.

    Args:
        value_bytes: bytes of a weight and of an output value: 4 in fp32, 2 in fp16.
    """
    patches, width = grid.patches, spec.hidden_size
    tokens, merged = grid.tokens(spec.merge_size), spec.hidden_size * spec.merge_size**2
    mergers = 1 + len(spec.deepstack_visual_indexes)
    embed = patches * spec.patch_values * width
    projections = patches * (4 * width * width + 2 * width * spec.intermediate_size)
    attention = 2 * grid.t * grid.patches_per_frame**2 * width  # scores and mix, within each frame
    merger = tokens * (merged * merged + merged * spec.out_hidden_size)
    products = embed + spec.depth * (projections + attention) + mergers * merger
    values = (
        spec.patch_values * width
        + spec.num_position_embeddings * width
        + spec.depth * (4 * width * width + 2 * width * spec.intermediate_size)
        + mergers * (merged * merged + merged * spec.out_hidden_size)
    )
    return EncoderCost(
        flops=2 * products,
        weights=values * value_bytes,
        bytes_in=patches * spec.patch_values * 4,
        bytes_out=mergers * tokens * spec.out_hidden_size * value_bytes,
    )
