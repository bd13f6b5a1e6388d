"""How many pictures and clips a conversation may have, and how large they may be, once decoded.

Everything is added up before it is decoded: a small file may claim, and really become, a thousand times its size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from qwen3vl_edge.contract.errors import ContractError, LimitError
from qwen3vl_edge.contract.formats.bounded_picture import PIXELS_PER_BYTE


class AbandonedError(ContractError):
    """Nobody waits for the result any more."""

    status = 499
    code = "client_left"


@dataclass(frozen=True)
class MediaLimits:
    """Limits of one conversation; the fields are also the names of the daemon's settings.

    The defaults are for media that the user of this process named. The daemon's settings are lower.

    Attributes:
        max_media: pictures and clips.
        max_pixels: of all pictures together.
        max_picture_pixels: of any picture, and of a clip's frame; a picture may have 10 for each of its file's bytes.
        max_clip_pixels: of all sampled frames of clips together. They are decoded and resized one after the other, so
            they take time and not memory: 768 frames, as many as qwen-vl-utils samples, are 1.6e9 pixels in 1080p and
            6.4e9 in 4K.
        max_visual_tokens: of pictures and clips together. Their patches are in memory at once, in 24 kB a token.
        exif_orientation: whether pictures are turned as their EXIF says, which comes before their size; else their
            rows stay as the sensor wrote them.
    """

    max_media: int = 256
    max_pixels: int = 500_000_000
    max_picture_pixels: int = 100_000_000
    max_clip_pixels: int = 6_400_000_000
    max_visual_tokens: int = 131_072
    exif_orientation: bool = True

    def most_pixels(self, file_bytes: int) -> int:
        """The most pixels of a picture, or of a clip's frame, whose file has so many bytes."""
        return max(self.max_picture_pixels, PIXELS_PER_BYTE * file_bytes)


def _claim_nothing(tokens: int) -> None:
    pass


class MediaBudget:
    """What the media of one conversation have cost so far. Used by one thread, ended by any.

    Args:
        claim_tokens: called with the visual tokens of each picture and clip before its patches are made; may raise.
        seconds: for all of it.
        setting: the setting that sets them.
    """

    def __init__(
        self,
        limits: MediaLimits = MediaLimits(),
        claim_tokens: Callable[[int], None] = _claim_nothing,
        seconds: float | None = None,
        setting: str = "seconds",
    ) -> None:
        self.limits = limits
        self._claim_tokens = claim_tokens
        self._seconds, self._setting = seconds, setting
        self._ends: float | None = None
        self._abandoned = False
        self._spent = {"media": 0, "pixels": 0, "clip_pixels": 0, "visual_tokens": 0}
        self._paid: dict[str, int] = {}

    def start(self) -> None:
        """The time begins to run."""
        self._ends = None if self._seconds is None else time.monotonic() + self._seconds

    def abandon(self) -> None:
        """Nobody waits for the result any more: the next `check` raises."""
        self._abandoned = True

    def check(self) -> None:
        """Called between pictures, and between frames of a clip.

        Raises:
            AbandonedError: nobody waits.
            LimitError: it takes too long.
        """
        if self._abandoned:
            raise AbandonedError("the client left before its media were read", field="messages")
        if self._ends is not None and time.monotonic() > self._ends:
            raise LimitError(
                "the request's pictures and clips take too long to prepare",
                field="messages",
                expected=f"at most {self._seconds:g} s ({self._setting})",
                remedy="Send fewer or smaller ones.",
            )

    def add_media(self, count: int) -> None:
        """Raises: LimitError: too many pictures and clips."""
        self._add("media", count, "pictures and clips")

    def add_pixels(self, count: int) -> None:
        """Raises: LimitError: the pictures have too many pixels."""
        self._add("pixels", count, "pixels")

    def add_clip_pixels(self, count: int, described: str) -> None:
        """Raises: LimitError: the sampled frames have too many pixels; `described` says why."""
        self._add("clip_pixels", count, "pixels in the sampled frames of clips", f" ({described})")

    def add_visual_tokens(self, count: int) -> None:
        """Raises: LimitError: the media become too many visual tokens."""
        if added := self._add("visual_tokens", count, "visual tokens"):
            self._claim_tokens(added)

    @property
    def spent(self) -> dict[str, int]:
        """What was added so far, for `retry_from`."""
        return dict(self._spent)

    def retry_from(self, spent: dict[str, int]) -> None:
        """What was added since then failed and is tried again, in another way: it pays only what it costs more."""
        self._paid = {name: self._spent[name] - spent[name] for name in spent}

    def _add(self, name: str, count: int, what: str, described: str = "") -> int:
        """What is added of `count`, after what is paid already."""
        paid = min(count, self._paid.get(name, 0))
        self._paid[name] = self._paid.get(name, 0) - paid
        count -= paid
        most, total = getattr(self.limits, f"max_{name}"), self._spent[name] + count
        if total > most:
            raise LimitError(
                f"the request has too many {what}",
                field="messages",
                expected=f"at most {most} (max_{name})",
                got=f"{total}{described}",
                remedy="Send fewer or smaller ones.",
            )
        self._spent[name] = total
        return count
