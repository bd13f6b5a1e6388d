"""The bandwidth to the server, estimated from the bodies that were sent; the wire dtype for it and for the values."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwen3vl_edge.contract.wire.packing import bytes_per_value

AUTO = "auto"
# From the encoder's float16 to ever fewer bytes; fp8 has int8's bytes and is further off (docs/reports/benchmarks.md).
LADDER = ("fp16", "int8", "int4")
WEIGHT = 0.5  # of the newest body
LEAST_BYTES = 256 * 2**10  # a smaller body arrives with the headers: its time measures nothing
_RECEIVE = re.compile(r"(?:^|,)\s*receive;dur=(\d+(?:\.\d+)?)")


@dataclass
class BandwidthEstimate:
    """Bytes per second, an exponentially weighted mean; None until a body of LEAST_BYTES has been received."""

    bytes_per_second: float | None = None
    model_dtype: str | None = None
    """The dtype of the server's model, None until its `/readyz` was read."""

    def observe(self, size: int, server_timing: str) -> None:
        """Update the estimate from one body.

        Args:
            size: bytes that were sent.
            server_timing: the answer's `Server-Timing` header, with the milliseconds in which the server received them.
        """
        match = _RECEIVE.search(server_timing)
        if match is None or size < LEAST_BYTES or not (seconds := float(match[1]) / 1e3):
            return
        rate = size / seconds
        old = self.bytes_per_second
        self.bytes_per_second = rate if old is None else WEIGHT * rate + (1 - WEIGHT) * old

    def choose(self, size: int, columns: int, target_s: float, *, wide: bool = False) -> str:
        """The wire dtype for embeddings of `size` bytes in float16, in rows of `columns`: the most precise that arrives
        within `target_s`, the smallest where none does; the most precise as long as there is no estimate.

        Args:
            wide: values are beyond float16's range. The most precise is then bfloat16 where the server's model rounds
                to it anyway, else float32.
        """
        widest = "bf16" if self.model_dtype == "bfloat16" else "fp32"
        ladder = (widest, *LADDER[1:]) if wide else LADDER
        if self.bytes_per_second is None:
            return ladder[0]
        for name in ladder:
            if size / 2 * bytes_per_value(name, columns) / self.bytes_per_second <= target_s:
                return name
        return ladder[-1]
