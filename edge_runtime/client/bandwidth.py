"""How fast the link to the server is, as far as the bodies that were sent have shown, and what to send over it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen3vl_edge.contract.wire.packing import bytes_per_value

AUTO = "auto"
# From the encoder's float16 to ever fewer bytes; fp8 has int8's bytes and is further off (docs/reports/benchmarks.md).
LADDER = ("fp16", "int8", "int4")
WEIGHT = 0.5  # of the newest body
LEAST_BYTES = 256 * 2**10  # a smaller body arrives with the headers, and shows nothing
_RECEIVE = re.compile(r"(?:^|,)\s*receive;dur=(\d+(?:\.\d+)?)")


@dataclass
class BandwidthEstimate:
    """Bytes per second, an exponentially weighted mean; None until a body of some size has been received."""

    bytes_per_second: float | None = None

    def heard(self, size: int, server_timing: str) -> None:
        """Learn from one body.

        Args:
            size: bytes that were sent.
            server_timing: the answer's header of that name, where the server says how long they took to come.
        """
        found = _RECEIVE.search(server_timing)
        if found is None or size < LEAST_BYTES or not (seconds := float(found[1]) / 1e3):
            return
        rate = size / seconds
        old = self.bytes_per_second
        self.bytes_per_second = rate if old is None else WEIGHT * rate + (1 - WEIGHT) * old

    def choose(self, size: int, columns: int, target_s: float) -> str:
        """The wire dtype for embeddings of `size` bytes in float16, in rows of `columns`: the one that moves them least
        and is there within `target_s`, the smallest where none is; float16 as long as nothing is known of the link."""
        if self.bytes_per_second is None:
            return LADDER[0]
        for name in LADDER:
            if size / 2 * bytes_per_value(name, columns) / self.bytes_per_second <= target_s:
                return name
        return LADDER[-1]
