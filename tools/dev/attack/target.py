"""A process under attack: its memory, CPU time, threads and descriptors, as the kernel counts them (proc(5))."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MIB = 2**20


@dataclass(frozen=True)
class Target:
    """A running server or daemon.

    Attributes:
        side: "server" or "daemon".
        model_hash: of the model that it serves.
        log: its log file.
        audit: its audit log; None for a daemon, which has none.
    """

    side: str
    url: str
    pid: int
    model_hash: str
    log: Path
    audit: Path | None = None

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return str(parts.hostname), int(parts.port or 80)

    @property
    def resident(self) -> int:
        """Bytes of resident memory."""
        return self._status("VmRSS") * 1024

    @property
    def peak(self) -> int:
        """The most bytes of resident memory since `reset_peak`."""
        return self._status("VmHWM") * 1024

    @property
    def threads(self) -> int:
        return self._status("Threads")

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def cpu_seconds(self) -> float:
        """Seconds of CPU time of all its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def reset_peak(self) -> None:
        """Begin to count the peak anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        match = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text(), re.MULTILINE)
        if match is None:
            raise ValueError(f"/proc has no {name}")
        return int(match[1])
