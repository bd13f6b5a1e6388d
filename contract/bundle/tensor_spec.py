"""Name, dtype and shape of a tensor that a graph or an engine takes or gives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output; a symbolic dimension is a string. dtype as numpy names it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def shape_for(self, patches: int, frame_patches: int) -> tuple[int, ...]:
        """The shape of a graph input for a picture of so many patches, of which so many are in each frame."""
        sizes = {"patches": patches, "frame_patches": frame_patches}
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)
