"""Numbers of any count of bits, as headers of coded pictures have them."""

from __future__ import annotations


class Bits:
    """Reads from the highest bit on.

    Raises:
        ValueError: by each method, where the data end.
    """

    def __init__(self, data: bytes) -> None:
        self._bits, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        """An unsigned number of so many bits."""
        self._left -= count
        if self._left < 0:
            raise ValueError("a header of its coded picture is cut")
        return self._bits >> self._left & ((1 << count) - 1)

    def exponential(self) -> int:
        """AV1's `uvlc` and HEVC's `ue(v)`."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return self.read(zeros) + (1 << zeros) - 1
