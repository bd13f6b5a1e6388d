"""The clock of jobs' lifetimes: seconds that a spool has lived, which no change of the wall clock moves.

A device without a battery boots a year behind, and NTP puts it right while jobs wait: by wall time all of them would
expire, or wait for a year. So deadlines are points on the spool's own clock. It goes on with the machine's time since
boot, is saved now and then, and continues from there. CLOCK_BOOTTIME, not CLOCK_MONOTONIC: it counts while the machine
sleeps, as the client that waits does, and as it is one for all processes of a boot, it also counts while no daemon
runs. Only the time that the machine was off is unknown, and not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class MachineClocks:
    """What a machine knows about time.

    Attributes:
        boot: name of this boot; "" where the machine has none, and then times of two processes cannot be compared.
        since_boot: seconds since boot.
        wall: seconds since 1970, as somebody set it; only for people to read.
    """

    boot: str
    since_boot: Callable[[], float]
    wall: Callable[[], float]


def machine_clocks() -> MachineClocks:
    """Those of this machine."""
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:  # not Linux
        boot = ""
    return MachineClocks(boot, _since_boot, time.time)


def _since_boot() -> float:
    name = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if name is None else time.clock_gettime(name)


@dataclass(frozen=True)
class SavedClock:
    """A moment: the spool's seconds, and the boot and its seconds at which it had them."""

    seconds: float = 0.0
    boot: str = ""
    since_boot: float = 0.0


class JobClock:
    """Continues from a saved moment; call it for the seconds."""

    def __init__(self, saved: SavedClock, clocks: MachineClocks) -> None:
        self._clocks = clocks
        now = clocks.since_boot()
        missed = now - saved.since_boot if clocks.boot and clocks.boot == saved.boot else 0.0
        self._zero = now - saved.seconds - max(0.0, missed)
        self._saved = now

    def __call__(self) -> float:
        return self._clocks.since_boot() - self._zero

    @property
    def unsaved_s(self) -> float:
        """Seconds since `save`; so much is lost if the machine stops now."""
        return self._clocks.since_boot() - self._saved

    def save(self) -> SavedClock:
        """What to write down."""
        self._saved = self._clocks.since_boot()
        return SavedClock(self._saved - self._zero, self._clocks.boot, self._saved)
