"""systemd's notify protocol (sd_notify(3)): ready, still alive, stopping. Silent where there is no systemd."""

from __future__ import annotations

import asyncio
import os
import socket


def notify(state: str) -> None:
    """Send a state such as "READY=1" to the service manager, if one is listening."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a manager that does not read must not hold up the device
            sender.sendto(state.encode(), address)
    except OSError:
        pass  # the manager is gone; there is nobody to tell


async def feed_watchdog() -> None:
    """Tell systemd that the event loop turns, twice in each interval that the unit asks for."""
    asked = os.environ.get("WATCHDOG_USEC", "")
    while asked.isdigit() and int(asked) > 0:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(asked) / 2e6)
