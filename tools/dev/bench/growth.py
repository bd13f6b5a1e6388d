"""How costs grow: exponents fitted to what the other benches wrote, and plots.

python -m qwen3vl_edge.tools.dev.bench.growth docs/reports/benchmarks --plots docs/images

Reads encoder*.json (time and memory against visual tokens), wire.json (time against images) and concurrency.json (time
for a token against requests at once), fits `cost = a · n^k` by least squares on logarithms, and writes growth.json. For
the encoder, the exponent of its multiplications over the same range stands beside: attention makes it more than 1.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3vl_edge.tools.dev.bench.measurement import write_document

LEAST_POINTS = 3


@dataclass(frozen=True)
class Curve:
    """One cost against one number.

    Attributes:
        part: which plot.
        name: of the line.
        points: (n, cost), by n.
        exponent: fitted k; least: what it cannot be below, where that is known.
        within: the largest ratio between a point and the fit.
    """

    part: str
    name: str
    points: tuple[tuple[float, float], ...]
    exponent: float
    least: float | None
    within: float


def curves(folder: Path) -> list[Curve]:
    """Of all files that are there."""
    measured: list[Curve] = []
    for path in sorted(folder.glob("encoder*.json")):
        measured += _encoder(json.loads(path.read_text(encoding="utf-8")), path.stem)
    if (path := folder / "wire.json").exists():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for name in ("memcpy and send", "ours", "ours over HTTP"):
            points = [(row["images"], row["median_ms"] / 1e3) for row in rows if row["name"] == name]
            measured += _curve("wire: seconds against images", name, points, 1.0)
    if (path := folder / "concurrency.json").exists():
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for key, name in (("seconds_per_token", "seconds for a token"), ("first_token_p50_s", "to the first token")):
            points = [(row["at_once"], row[key]) for row in rows]
            measured += _curve("server: against requests at once", name, points, None)
    return measured


def _encoder(document: dict[str, Any], stem: str) -> list[Curve]:
    measured: list[Curve] = []
    threads = sorted({row["threads"] for row in document["rows"]})
    for count in threads:
        rows = [row for row in document["rows"] if row["threads"] == count]
        for name in dict.fromkeys(row["candidate"] for row in rows):
            own = [row for row in rows if row["candidate"] == name]
            flops = _curve("", name, [(row["tokens"], row["flops"]) for row in own], None)
            least = flops[0].exponent if flops else None
            label = f"{name}, {count} threads"
            seconds = [(row["tokens"], row["median_seconds"]) for row in own]
            measured += _curve(f"{stem}: seconds against visual tokens", label, seconds, least)
            held = [(row["tokens"], row["peak_bytes"]) for row in own if row["peak_bytes"]]
            measured += _curve(f"{stem}: peak bytes against visual tokens", label, held, None)
    return measured


def _curve(part: str, name: str, points: Iterable[tuple[float, float]], least: float | None) -> list[Curve]:
    ordered = tuple(sorted(points))
    if len({n for n, _ in ordered}) < LEAST_POINTS:
        return []
    x, y = (np.log([point[axis] for point in ordered]) for axis in (0, 1))
    exponent, intercept = (float(value) for value in np.polyfit(x, y, 1))
    within = float(np.exp(np.abs(y - (exponent * x + intercept)).max()))
    return [Curve(part, name, ordered, round(exponent, 3), least, round(within, 3))]


def plot(curves: list[Curve], folder: Path) -> None:
    """Write `growth.svg`: a panel for each part."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "qwen3vl-edge"  # the same file for the same figures
    from matplotlib import pyplot

    parts = list(dict.fromkeys(curve.part for curve in curves))
    columns = min(2, len(parts))
    figure, axes = pyplot.subplots(
        math.ceil(len(parts) / columns), columns, figsize=(6.4 * columns, 4.2 * math.ceil(len(parts) / columns))
    )
    for axis, part in zip(np.atleast_1d(axes).reshape(-1), parts, strict=False):
        for curve in curves:
            if curve.part == part:
                axis.loglog(*zip(*curve.points, strict=True), "o-", label=f"{curve.name}: {curve.exponent:.2f}")
        axis.set_title(part, fontsize=9)
        axis.legend(fontsize=6)
        axis.grid(True, which="both", alpha=0.3)
    for axis in np.atleast_1d(axes).reshape(-1)[len(parts) :]:
        axis.set_visible(False)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "growth.svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plots", type=Path, required=True)
    arguments = parser.parse_args()
    measured = curves(arguments.folder)
    plot(measured, arguments.plots)
    write_document(arguments.folder / "growth.json", {"rows": [asdict(curve) for curve in measured]})
    for curve in measured:
        print(f"{curve.part}, {curve.name}: {curve.exponent:.2f}")


if __name__ == "__main__":
    main()
