"""A figure of a server's `/metrics`."""

from __future__ import annotations

import re

import httpx


def metric(url: str, name: str) -> float:
    """The sample of this name, labels included; 0 where there is none yet."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0
