"""Figures of `/metrics`."""

from __future__ import annotations

import re

import httpx


def metric(url: str, name: str) -> float:
    """The sample of this name, labels included; 0 where there is none yet."""
    match = re.search(rf"^{re.escape(name)} (\S+)$", _metrics(url), re.MULTILINE)
    return float(match[1]) if match else 0.0


def metric_sum(url: str, name: str) -> float:
    """All samples of this name, whatever their labels, added up."""
    return sum(map(float, re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", _metrics(url), re.MULTILINE)))


def _metrics(url: str) -> str:
    return httpx.get(f"{url.rstrip('/')}/metrics").text
