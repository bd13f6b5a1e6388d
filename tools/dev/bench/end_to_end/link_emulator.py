"""A link in user space: packets between two TUN interfaces, each held for its turn at the rate and then for the delay.

python -m qwen3vl_edge.tools.dev.bench.end_to_end.link_emulator

makes both interfaces, reports it, and reads `{"mbit", "rtt_s"}` (line_process.py). Real TCP runs over it;
nothing is ever dropped, so a link is slow and not lossy. (netem does the same in the kernel, but is not part of every
kernel.)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import struct
import sys
import time
from collections import deque

from qwen3vl_edge.tools.dev.bench.line_process import Answers

SERVER_SIDE, DEVICE_SIDE = "q3e-server", "q3e-device"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_PACKET = 2**16
_BURST = 64  # packets taken from one side before the other has its turn


class Direction:
    """Packets one way.

    A packet begins when the one before it has left (the rate), and arrives half a round trip after it has left itself.
    """

    def __init__(self, source: int, target: int) -> None:
        self.source, self._target = source, target
        self._on_their_way: deque[tuple[float, bytes]] = deque()
        self._free_at = 0.0

    def take(self, now: float, seconds_per_byte: float, delay: float) -> None:
        """Read what is there."""
        for _ in range(_BURST):
            try:
                packet = os.read(self.source, _PACKET)
            except BlockingIOError:
                return
            self._free_at = max(self._free_at, now) + len(packet) * seconds_per_byte
            self._on_their_way.append((self._free_at + delay, packet))

    def deliver(self, now: float) -> None:
        """Write what is due."""
        while self._on_their_way and self._on_their_way[0][0] <= now:
            packet = self._on_their_way.popleft()[1]
            with contextlib.suppress(OSError):  # the other interface is not up yet
                os.write(self._target, packet)

    @property
    def next_at(self) -> float:
        """When the next packet is due."""
        return self._on_their_way[0][0] if self._on_their_way else float("inf")


def main() -> None:
    server, device = (_open_tun(name) for name in (SERVER_SIDE, DEVICE_SIDE))
    directions = (Direction(server, device), Direction(device, server))
    seconds_per_byte, delay = 0.0, 0.0
    answers = Answers()
    answers.reply({"ready": True})
    while True:
        now = time.monotonic()
        wait = max(0.0, min(item.next_at for item in directions) - now)
        readable = select.select([0, server, device], [], [], min(wait, 60.0))[0]
        if 0 in readable:
            line = sys.stdin.readline()
            if not line:
                return
            link = json.loads(line)
            seconds_per_byte, delay = 8 / (link["mbit"] * 1e6), link["rtt_s"] / 2
            answers.reply(link)
        now = time.monotonic()
        for item in directions:
            if item.source in readable:
                item.take(now, seconds_per_byte, delay)
            item.deliver(time.monotonic())


def _open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


if __name__ == "__main__":
    main()
