"""How long a body takes over a link, on a new connection: with TCP's slow start.

A connection takes a round trip to open. A sender may then have a window of bytes in flight; it starts at ten segments
(RFC 6928) and doubles with each round trip (slow start, RFC 5681) until it fills the link: then bytes are sent at the
link's rate. A connection that was left open saves the first round trip and little else: after a pause the window is
reset (RFC 2861), and servers close connections that were idle for some seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

SEGMENT_BYTES = 1448  # Ethernet's 1500 less IP and TCP headers with timestamps
FIRST_WINDOW = 10 * SEGMENT_BYTES
FRAME_SHARE = 1514 / SEGMENT_BYTES  # bytes of the link for a byte of the body, with headers


@dataclass(frozen=True)
class LinkSpeed:
    """A link, the same both ways.

    Attributes:
        mbit: million bits per second.
        rtt_s: seconds to the other end and back, idle.
    """

    mbit: float
    rtt_s: float

    @property
    def bytes_per_second(self) -> float:
        """Of a body."""
        return self.mbit * 1e6 / 8 / FRAME_SHARE


def transfer_seconds(size: int, link: LinkSpeed) -> float:
    """Seconds from the start of the connection until the acknowledgement of the body's last byte.

    Args:
        size: bytes of the body.
    """
    rate, window, left, seconds = link.bytes_per_second, float(FIRST_WINDOW), float(size), 0.0
    while left > window and window < rate * link.rtt_s:
        seconds += link.rtt_s
        left -= window
        window *= 2
    return link.rtt_s + seconds + left / rate + link.rtt_s
