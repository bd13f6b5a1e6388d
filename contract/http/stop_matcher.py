"""OpenAI's `stop`: the answer ends before the first of these strings, which may be split across tokens."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3vl_edge.contract.errors import InputError

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256  # each is searched for after every token


def check_stop_strings(stops: Sequence[str]) -> None:
    """Raises: InputError: too many, or too long."""
    if len(stops) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in stops):
        raise InputError(
            "stop strings are too many or too long",
            field="stop",
            expected=f"at most {MAX_STOPS}, of at most {MAX_STOP_CHARACTERS} characters",
            got=f"{len(stops)}, the longest of {max(len(text) for text in stops)}",
        )


class StopStrings:
    """Holds back text that may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Append a piece and return the text that can be shown; empty once a stop string was found."""
        if not self._stops:
            return text
        if self.found:
            return ""
        held = self._held + text
        places = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)]
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """The text that was held back, at the end of an answer without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a prefix of `stop`."""
    return next(length for length in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:length]))
