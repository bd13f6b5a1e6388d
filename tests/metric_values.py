"""Numbers out of Prometheus' text, as a scrape of a real process gives them."""

from __future__ import annotations

import re

import httpx


def metric(url: str, name: str) -> float:
    """The sum of a metric over all of its labels, or one sample where the name has them; 0 if there is none."""
    pattern = rf"^{re.escape(name)}{'' if '{' in name else r'(?:{[^}]*})?'} (\S+)$"
    return sum(float(value) for value in re.findall(pattern, httpx.get(f"{url}/metrics").text, re.MULTILINE))
