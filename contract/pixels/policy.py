"""The pixel policy: between which limits a picture or clip is resized before it is encoded.

It is chosen at export and stored in the manifest, with its numbers. Two upstreams bound the same things in different
ways: transformers' processors, whose limits are the checkpoint's, bound a clip's frames together; qwen-vl-utils, which
knows of no checkpoint, bounds each frame and the clip's total.

A part of a message may have limits of its own, with qwen-vl-utils' names and meaning: `min_pixels` and `max_pixels` of
the picture or of each frame, `total_pixels` of a clip, `resized_height` and `resized_width` in place of limits. What it
does not name is the policy's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.pixels.processor_arguments import NO_ARGUMENTS, Bounds, ProcessorArguments
from qwen3vl_edge.contract.pixels.smart_resize import (
    MAX_TOKENS,
    MIN_TOKENS,
    clip_resize,
    processor_resize,
    smart_resize,
)

CHECKPOINT, QWEN_VL_UTILS = "checkpoint", "qwen-vl-utils"
PIXEL_POLICIES = {
    CHECKPOINT: "the limits of the checkpoint's processors, as transformers and vLLM apply them",
    QWEN_VL_UTILS: "qwen-vl-utils' defaults, whatever the checkpoint says",
}
ALL_FRAMES, EACH_FRAME = "all-frames", "each-frame"
# qwen-vl-utils 0.0.14: VIDEO_MIN_TOKEN_NUM, VIDEO_MAX_TOKEN_NUM; MODEL_SEQ_LEN * 0.9; FRAME_FACTOR.
_FRAME_TOKENS = (128, 768)
_TOTAL_TOKENS = 115_200
_FRAMES_OF_TOTAL = 2
_ROOM = 1.05  # between the least and the most of a clip, in both upstreams
MAX_STRETCH = 16  # of given sides: the most by which they may change the ratio of width to height
KEYS = ("min_pixels", "max_pixels", "total_pixels")
SIDES = ("resized_height", "resized_width")  # in place of limits


@dataclass(frozen=True)
class PictureLimits:
    """Least and most pixels of a picture."""

    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class ClipLimits:
    """Least and most pixels of a clip.

    Attributes:
        bounds: "all-frames": `min_pixels` and `max_pixels` are of all frames together, as of transformers'
            Qwen3VLVideoProcessor; "each-frame": of each, as of qwen-vl-utils.
        frame_max_pixels: with "all-frames", the most of one frame (the processor's `max_video_tokens` where
            `cap_pixels_per_frame` is on), None for no such limit.
        total_pixels: with "each-frame", half of the most of all frames together.
    """

    bounds: str
    min_pixels: int
    max_pixels: int
    frame_max_pixels: int | None = None
    total_pixels: int | None = None


@dataclass(frozen=True)
class PixelPolicy:
    """The limits of one bundle or server, or of one request.

    Attributes:
        name: a key of `PIXEL_POLICIES`.
        factor: pixels of a visual token's side.
        temporal: frames of a temporal patch.
    """

    name: str
    image: PictureLimits
    video: ClipLimits
    factor: int = 32
    temporal: int = 2

    @property
    def request_arguments(self) -> ProcessorArguments:
        """The request's, which have replaced limits; errors name them."""
        return NO_ARGUMENTS

    @property
    def resizes_bytes(self) -> bool:
        """Whether media are resized as transformers' processors do it, in whole numbers; else as qwen-vl-utils does."""
        return self.name == CHECKPOINT

    def picture_limits(self, given: Mapping[str, Any] | None = None) -> PictureLimits:
        """The limits of a picture.

        Args:
            given: the keys of its part, as `check_numbers` in `part_options.py` allows them; others than `min_pixels`
                and `max_pixels` have no effect.
        """
        given = given or {}
        lowest, highest = given.get("min_pixels"), given.get("max_pixels")
        limits = self.image
        least = limits.min_pixels if lowest is None else lowest
        most = limits.max_pixels if highest is None else highest
        if self.name == CHECKPOINT and least > most and given.keys() & set(KEYS):  # the part's own goes before
            least = most = most if lowest is None else least
        return PictureLimits(math.ceil(least), math.ceil(most))

    def picture_size(self, height: int, width: int, given: Mapping[str, Any] | None = None) -> tuple[int, int]:
        """The size (height, width) that a picture is resized to.

        Args:
            given: the keys of its part, as `picture_limits`, and `resized_height` and `resized_width`.

        Raises:
            InputError: limits without a size between them.
            ValueError: sides too unequal.
        """
        if (sides := _given_sides(given)) is not None:
            return _checked_sides(height, width, smart_resize(*sides, self.factor))
        limits = self.picture_limits(given)
        if self.name == CHECKPOINT:
            return processor_resize(height, width, self.factor, limits.min_pixels, limits.max_pixels)
        _check_order(limits.min_pixels, limits.max_pixels, given or {}, self.request_arguments.image)
        return smart_resize(height, width, self.factor, limits.min_pixels, limits.max_pixels)

    def clip_size(
        self, frames: int, height: int, width: int, given: Mapping[str, Any] | None = None
    ) -> tuple[int, int]:
        """The size (height, width) that a clip's frames are resized to.

        Args:
            frames: number of sampled frames.
            height, width: of each.
            given: the keys of its part.

        Raises:
            InputError: limits without a size between them.
            ValueError: sides too unequal.
        """
        if (sides := _given_sides(given)) is not None:
            return _checked_sides(height, width, smart_resize(*sides, self.factor))
        lowest, highest = self._clip_bounds(frames, given or {})
        if self.video.bounds == EACH_FRAME:
            return smart_resize(height, width, self.factor, lowest, highest)
        return clip_resize(frames, height, width, self.factor, self.temporal, math.ceil(lowest), math.ceil(highest))

    def _clip_bounds(self, frames: int, given: Mapping[str, Any]) -> tuple[float, float]:
        """Least and most pixels of a frame, or of all, as `bounds` says."""
        least, most, total = (given.get(key) for key in KEYS)
        limits = self.video
        if limits.bounds == EACH_FRAME:
            lowest = limits.min_pixels if least is None else least
            total = limits.total_pixels if total is None else total
            share = limits.max_pixels if total is None else min(limits.max_pixels, total / frames * _FRAMES_OF_TOTAL)
            highest = max(share, int(lowest * _ROOM))
            highest = highest if most is None else min(most, highest)
            _check_order(lowest, highest, given, NO_ARGUMENTS.video)
            return lowest, highest
        frames = max(frames, self.temporal)
        lowest = limits.min_pixels if least is None else least * frames
        highest = limits.max_pixels if total is None else total * _FRAMES_OF_TOTAL
        if limits.frame_max_pixels is not None:  # the processor takes its least of all frames for one's there
            share = min(limits.frame_max_pixels, highest // frames)
            highest = max(share, int((lowest if least is None else least) * _ROOM)) * frames
        elif least is not None or total is not None:
            highest = max(highest, int(lowest * _ROOM))
        if most is not None:
            highest = min(highest, most * frames)
            lowest = min(lowest, highest)
        return lowest, highest

    def with_arguments(self, arguments: ProcessorArguments, *, clips: bool) -> PixelPolicy:
        """The policy of one request.

        Args:
            arguments: of the request's `mm_processor_kwargs`; they replace limits of the processors.
            clips: whether the request has some.

        Raises:
            InputError: limits of clips, which this policy does not have.
        """
        if arguments == NO_ARGUMENTS:
            return self
        if clips and arguments.video.given and self.video.bounds == EACH_FRAME:
            raise InputError(
                "this pixel policy bounds each frame of a clip, and the processor's arguments bound all together",
                field=arguments.video.field,
                expected=f"a bundle of the policy {CHECKPOINT}",
                got=self.name,
                remedy="Put min_pixels, max_pixels or total_pixels beside the clip's URL.",
            )
        picture, clip = self.image, self.video
        if self.video.bounds == EACH_FRAME:
            limits = PictureLimits(*arguments.image.over(picture.min_pixels, picture.max_pixels))
            return RequestPixelPolicy(self.name, limits, clip, self.factor, self.temporal, arguments)
        least, most = arguments.video.over(clip.min_pixels, clip.max_pixels)
        limits = PictureLimits(*arguments.image.over(picture.min_pixels, picture.max_pixels))
        clip = replace(clip, min_pixels=least, max_pixels=most)
        return RequestPixelPolicy(self.name, limits, clip, self.factor, self.temporal, arguments)

    def picture_evidence(self, given: Mapping[str, Any] | None = None) -> dict[str, str]:
        """The policy and the limits in force for a picture, for the evidence of an answer."""
        if (sides := _given_sides(given)) is not None:
            return self._evidence(_sides_text(sides))
        limits = self.picture_limits(given)
        return self._evidence(f"{limits.min_pixels} to {limits.max_pixels}")

    def clip_evidence(self, frames: int, given: Mapping[str, Any] | None = None) -> dict[str, str]:
        """The same for a clip of so many sampled frames."""
        if (sides := _given_sides(given)) is not None:
            return self._evidence(_sides_text(sides))
        lowest, highest = (int(number) for number in self._clip_bounds(frames, given or {}))
        unit = "a frame" if self.video.bounds == EACH_FRAME else f"of all {max(frames, self.temporal)} frames"
        return self._evidence(f"{lowest} to {highest} {unit}")

    def _evidence(self, limits: str) -> dict[str, str]:
        return {"pixel_policy": self.name, "pixel_limits": limits}


@dataclass(frozen=True)
class RequestPixelPolicy(PixelPolicy):
    """The limits of one request that has arguments; no manifest has it."""

    arguments: ProcessorArguments = NO_ARGUMENTS

    @property
    def request_arguments(self) -> ProcessorArguments:
        return self.arguments


def qwen_vl_utils_policy(factor: int, temporal: int = 2) -> PixelPolicy:
    """qwen-vl-utils' defaults.

    Args:
        factor: pixels of a visual token's side.
    """
    token = factor**2
    least, most = (tokens * token for tokens in _FRAME_TOKENS)
    return PixelPolicy(
        QWEN_VL_UTILS,
        PictureLimits(MIN_TOKENS * token, MAX_TOKENS * token),
        ClipLimits(EACH_FRAME, least, most, total_pixels=_TOTAL_TOKENS * token),
        factor,
        temporal,
    )


def own_keys(policy: PixelPolicy) -> dict[str, int]:
    """Keys of a clip's part that make qwen-vl-utils apply limits of this policy that are not its defaults."""
    default = qwen_vl_utils_policy(policy.factor).video
    names = {"min_pixels": policy.video.min_pixels, "max_pixels": policy.video.max_pixels}
    names["total_pixels"] = policy.video.total_pixels or 0
    return {name: value for name, value in names.items() if value != getattr(default, name)}


def _given_sides(given: Mapping[str, Any] | None) -> tuple[int, int] | None:
    given = given or {}
    return (given[SIDES[0]], given[SIDES[1]]) if all(name in given for name in SIDES) else None


def _checked_sides(height: int, width: int, sides: tuple[int, int]) -> tuple[int, int]:
    """Sides that a client wrote, where resizing to them is no larger a work than their size and the picture's explain.

    Resizing one side before the other, as every library does, makes a picture of `height` by `sides[1]` between them.

    Raises:
        InputError: they change its shape too much.
    """
    change = sides[1] / sides[0] * height / width
    if max(change, 1 / change) > MAX_STRETCH:
        raise InputError(
            "resized_height and resized_width change the shape too much",
            field="resized_height",
            expected=f"sides whose ratio is within {MAX_STRETCH} times the picture's own ({width}x{height})",
            got=f"{sides[1]}x{sides[0]}",
            remedy="Give sides nearer to its shape, or min_pixels and max_pixels, which keep it.",
        )
    return sides


def _sides_text(sides: tuple[int, int]) -> str:
    return f"{SIDES[0]} {sides[0]}, {SIDES[1]} {sides[1]}"


def _check_order(lowest: float, highest: float, given: Mapping[str, Any], arguments: Bounds) -> None:
    """Refuse a most below the least, under the name that the client gave to either.

    Args:
        given: the keys of a part, which go before.
        arguments: of the request. What neither names is the policy's.
    """
    if lowest <= highest:
        return
    least = "min_pixels" if "min_pixels" in given else arguments.lowest_field if arguments.lowest else None
    most = "max_pixels" if "max_pixels" in given else arguments.highest_field if arguments.highest else None
    if most is None:
        raise InputError(
            f"{least} is above the pixel policy's max_pixels",
            field=least,
            expected=f"at most {highest:.0f}, or max_pixels beside it",
            got=f"{lowest:.0f}",
        )
    raise InputError(
        f"{most} is below {least or 'min_pixels of the pixel policy'}",
        field=most,
        expected=f"at least {lowest:.0f}",
        got=f"{highest:.0f}",
    )
