"""systemd's notify protocol (sd_notify(3)): readiness, watchdog, stop. Does nothing without systemd."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable


def notify(state: str) -> None:
    """Send a state such as "READY=1" to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a manager that does not read must not block the daemon
            sender.sendto(state.encode(), address)
    except OSError:
        pass  # the manager is gone


async def feed_watchdog(beyond_help: Callable[[], bool]) -> None:
    """Report to systemd's watchdog that the event loop runs, twice in each interval that the unit sets.

    Args:
        beyond_help: whether systemd should start the daemon anew; it then gets no more reports.
    """
    interval = os.environ.get("WATCHDOG_USEC", "")
    while interval.isdigit() and int(interval) > 0:
        if not beyond_help():
            notify("WATCHDOG=1")
        await asyncio.sleep(int(interval) / 2e6)
