"""`qwen3vl-edge parity`: the proof, its page, and the search for the layer that broke it."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.tools.parity.candidate import Candidate
from qwen3vl_edge.tools.parity.layers.bisect import Bisection, bisect, earliest
from qwen3vl_edge.tools.parity.layers.names import MEANING, LayerSource, part_of
from qwen3vl_edge.tools.parity.layers.sources import layers_of, no_layers
from qwen3vl_edge.tools.parity.limits import limits_of
from qwen3vl_edge.tools.parity.pictures import pictures_of
from qwen3vl_edge.tools.parity.report import print_report
from qwen3vl_edge.tools.parity.run import ParityRequest, open_against, open_candidate, open_reference, run_parity


def run(request: ParityRequest, page: Path | None, as_json: bool) -> None:
    """Measure, print, write the page, and exit with code 1 if the split does not hold.

    Args:
        page: HTML file to write; None for none.

    Raises:
        ContractError: an input that cannot be used.
    """
    _quiet()
    if page is not None:
        _check_plotting()
    console = Console(stderr=True)
    with console.status("parity") as status:
        findings = run_parity(request, status.update)
        if page is not None:
            from qwen3vl_edge.tools.parity.page.page import page_of

            status.update("drawing the page")
            _write(page, page_of(findings))
    report = findings.report
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n")
        for row in report.failures:
            sys.stderr.write(f"failed {row}\n")
    else:
        print_report(report)
    if not report.passed:
        raise SystemExit(1)


def run_bisect(request: ParityRequest, tolerance: float | None, as_json: bool) -> None:
    """Name the first layer at which both sides part, and exit with code 1 if there is one.

    Args:
        tolerance: relative L2 of a layer; None for the looser of both sides' defaults.

    Raises:
        ContractError: an input that cannot be used, or a side that shows no layers.
    """
    from qwen3vl_edge.tools.parity.layers.torch_layers import TorchLayers

    _quiet()
    with ExitStack() as stack, Console(stderr=True).status("bisecting") as status:
        pictures = {} if request.dump else pictures_of(request.images)
        candidate = open_candidate(request, pictures, stack, status.update)
        other = open_against(request, candidate.bundle, stack)
        reference = open_reference(request.model, candidate.bundle)
        stack.callback(reference.close)
        vision = candidate.bundle.manifest.vision
        one = candidate.layers()
        two = TorchLayers(reference, vision) if other is None else layers_of(other)
        if one is None:
            raise no_layers(candidate.backend, "--backend")
        if two is None:
            raise no_layers("the other side", "--against-backend")
        if tolerance is None:
            precisions = [candidate.precision, *([other.encoder.precision] if other else [])]
            tolerance = max(limits_of(name).layer_tolerance for name in precisions)
        cases = (sample.case for sample in candidate.samples)
        served = (case for case in cases if one.serves(case.grid) and two.serves(case.grid))
        found = bisect(served, vision, one, two, tolerance, status.update)
    first = earliest(found, vision)
    labels = (_label(candidate, one), two.label)
    if as_json:
        sys.stdout.write(json.dumps(_bisection_json(found, first, tolerance, labels), indent=1) + "\n")
    else:
        _print_bisection(found, first, tolerance, labels)
    if first is not None:
        raise SystemExit(1)


def _label(candidate: Candidate, source: LayerSource) -> str:
    return f"{candidate.bundle.path.name}: {source.label}"


def _bisection_json(
    found: list[Bisection], first: Bisection | None, tolerance: float, labels: tuple[str, str]
) -> dict[str, Any]:
    return {
        "sides": labels,
        "tolerance": tolerance,
        "first_layer": None if first is None or first.first is None else first.first.layer,
        "first": None if first is None else asdict(first),
        "cases": [
            {"bucket": item.bucket, "picture": item.picture, "first_layer": item.first.layer if item.first else None}
            for item in found
        ],
    }


def _print_bisection(
    found: list[Bisection], first: Bisection | None, tolerance: float, labels: tuple[str, str]
) -> None:
    console = Console()
    console.print(
        f"{labels[0]} against {labels[1]}, {len(found)} comparisons (pictures times buckets)",
        highlight=False,
        soft_wrap=True,
    )
    if first is None or first.first is None:
        worst = max((gap for item in found for gap in item.gaps), key=lambda gap: gap.relative_l2)
        console.print(
            f"no layer parts by more than {tolerance:g}: the largest is {worst.layer}, relative L2 "
            f"{worst.relative_l2:.1e}",
            highlight=False,
            soft_wrap=True,
        )
        return
    table = Table(title=f"bucket {first.bucket}, {first.picture}", title_justify="left")
    for name in ("layer", "relative L2", "cosine", "max abs", "row", "channel"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    place = first.gaps.index(first.first)
    for index, gap in enumerate(first.gaps[max(0, place - 4) : place + 6], start=max(0, place - 4)):
        style = "bold red" if index == place else None
        figures = (f"{gap.relative_l2:.1e}", f"{gap.cosine:.7f}", f"{gap.max_abs:.1e}", str(gap.row), str(gap.channel))
        table.add_row(gap.layer, *figures, style=style)
    console.print(table)
    meaning = MEANING.get(part_of(first.first.layer), MEANING.get(first.first.layer, ""))
    console.print(
        f"first layer that parts by more than {tolerance:g}: [bold]{first.first.layer}[/]"
        + (f" ({meaning})" if meaning else ""),
        highlight=False,
        soft_wrap=True,
    )


def _check_plotting() -> None:
    """Before minutes of measuring, not after."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "the page's plots need matplotlib",
            field="--report",
            remedy="Install it with: pip install 'qwen3vl-edge[report]'",
        )


def _write(page: Path, text: str) -> None:
    try:
        atomic.write_bytes(page, text.encode())
    except OSError as error:
        raise InputError(f"{page} cannot be written ({error.strerror})", field="--report") from None


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
