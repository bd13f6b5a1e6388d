"""Grid arithmetic: what `grid_thw` means in pixels, patches and visual tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen3vl_edge.contract.errors import BucketError


@dataclass(frozen=True, order=True)
class Grid:
    """One `grid_thw` entry: temporal patches, patch rows, patch columns of an image (t = 1) or a clip."""

    t: int
    h: int
    w: int

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"

    @property
    def patches(self) -> int:
        """Rows of `pixel_values`: t·h·w."""
        return self.t * self.h * self.w

    @property
    def patches_per_frame(self) -> int:
        """Patches that attend to each other inside the encoder: attention does not cross frames."""
        return self.h * self.w

    def tokens(self, merge_size: int) -> int:
        """Visual tokens after the merger: t·h·w / merge²."""
        return self.patches // merge_size**2

    def as_list(self) -> list[int]:
        return [self.t, self.h, self.w]

    @classmethod
    def parse(cls, text: str) -> Grid:
        """Read `"1x28x28"` as printed by `str(grid)`."""
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
        if not match:
            raise BucketError("not a grid", field=text, expected="TxHxW in patches, such as 1x28x28", got=text)
        return cls(*(int(part) for part in match.groups()))


@dataclass(frozen=True)
class PatchGeometry:
    """The sizes that turn pixels into patches, read from the checkpoint's vision configuration."""

    patch_size: int = 16
    merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    def factor(self) -> int:
        """Pixels per visual token on each side; every side of a picture must be a multiple of it."""
        return self.patch_size * self.merge_size

    def pixels(self, grid: Grid) -> tuple[int, int]:
        """(height, width) in pixels of a grid."""
        return grid.h * self.patch_size, grid.w * self.patch_size

    def frames(self, grid: Grid) -> int:
        """Video frames of a grid; an image counts as one frame, repeated to fill the temporal patch."""
        return grid.t * self.temporal_patch_size

    def image_grid(self, height: int, width: int) -> Grid:
        """The grid of an image of exactly height × width pixels.

        Raises:
            BucketError: a side is not a positive multiple of `factor`.
        """
        for side, length in (("height", height), ("width", width)):
            if length <= 0 or length % self.factor:
                raise BucketError(
                    f"bucket {height}x{width}: {side} {length} does not fit the patch grid",
                    field="buckets",
                    expected=f"a positive multiple of {self.factor} "
                    f"(patch {self.patch_size} x merge {self.merge_size})",
                    remedy=f"Use {max(self.factor, round(length / self.factor) * self.factor)}.",
                )
        return Grid(1, height // self.patch_size, width // self.patch_size)

    def video_grid(self, frames: int, height: int, width: int) -> Grid:
        """The grid of a clip of `frames` frames of height × width pixels.

        Raises:
            BucketError: `frames` is not a multiple of the temporal patch, or a side does not fit.
        """
        if frames <= 0 or frames % self.temporal_patch_size:
            raise BucketError(
                f"video bucket {frames}x{height}x{width}: {frames} frames do not fill temporal patches",
                field="video",
                expected=f"a positive multiple of {self.temporal_patch_size} frames",
            )
        image = self.image_grid(height, width)
        return Grid(frames // self.temporal_patch_size, image.h, image.w)


def _numbers(text: str, count: int, form: str, option: str) -> tuple[int, ...]:
    match = re.fullmatch("x".join([r"(\d+)"] * count), text.strip().lower())
    if not match:
        raise BucketError(f"{option}: not a size", field=option, expected=form, got=repr(text))
    return tuple(int(part) for part in match.groups())


def parse_image_buckets(text: str, geometry: PatchGeometry) -> list[Grid]:
    """Read `"448x448,640x480"`, HEIGHTxWIDTH in pixels, into grids in the order given, without repeats."""
    form = "HEIGHTxWIDTH in pixels, such as 448x448"
    sizes = [_numbers(item, 2, form, "--buckets") for item in text.split(",") if item.strip()]
    return list(dict.fromkeys(geometry.image_grid(*size) for size in sizes))


def parse_video_buckets(text: str, geometry: PatchGeometry) -> list[Grid]:
    """Read `"8x448x448"`, FRAMESxHEIGHTxWIDTH in frames and pixels, into grids."""
    form = "FRAMESxHEIGHTxWIDTH, such as 8x448x448"
    sizes = [_numbers(item, 3, form, "--video") for item in text.split(",") if item.strip()]
    return list(dict.fromkeys(geometry.video_grid(*size) for size in sizes))
