"""`qwen3vl-edge parity`: the comparison, its page, and the search for the first layer that differs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.cli.options import (
    BackendOption,
    BundleOption,
    DeviceOption,
    DtypeOption,
    ImagesOption,
    JsonOption,
    PrecisionOption,
    PreprocessOption,
    ProviderOption,
    TargetOption,
    ThreadsOption,
    WireOption,
)

if TYPE_CHECKING:
    from qwen3vl_edge.edge_runtime.edge import EdgeOptions
    from qwen3vl_edge.tools.parity.layers.search import SearchReport
    from qwen3vl_edge.tools.parity.run import ParityRequest


def parity(
    bundle: BundleOption,
    model: Annotated[str, typer.Option(help="The checkpoint that the bundle was exported from.")],
    images: ImagesOption = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines with `messages`; questions about the pictures.")
    ] = None,
    backend: BackendOption = "onnxruntime",
    provider: ProviderOption = "auto",
    target: TargetOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    wire_dtype: WireOption = "fp16",
    preprocess: PreprocessOption = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 32,
    threads: ThreadsOption = 0,
    report: Annotated[Path | None, typer.Option(help="Write one self-contained HTML page.")] = None,
    gate: Annotated[Path | None, typer.Option(help="TOML file with the release's thresholds.")] = None,
    dump: Annotated[Path | None, typer.Option(help="A device's dump, in place of an engine that runs here.")] = None,
    against: Annotated[Path | None, typer.Option(help="Bundle of the other side; this one by default.")] = None,
    against_backend: Annotated[str | None, typer.Option(help="Backend of the other side.")] = None,
    against_provider: Annotated[str | None, typer.Option(help="Provider of the other side.")] = None,
    against_precision: Annotated[str | None, typer.Option(help="Precision of the other side.")] = None,
    against_target: Annotated[str | None, typer.Option(help="Engine of the other side.")] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Only name the first layer at which both sides part.")
    ] = False,
    tolerance: Annotated[float | None, typer.Option(help="Relative L2 of a layer, for --bisect.", min=0.0)] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the split with the unsplit model: embeddings, tokens, logits. Exit code 1 if they differ.

    Every graph of every set of the bundle is compared; with --precision those of one set.
    With any --against option a second side is measured beside the first, on the same pixels.
    """
    from qwen3vl_edge.edge_runtime.edge import EdgeOptions
    from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
    from qwen3vl_edge.tools.parity.run import ParityRequest

    backend_options = BackendOptions(
        precision=precision,
        threads=threads,
        model=Path(model),
        provider=provider,
        target=target,
        self_test=False,
        device=device,
        dtype=dtype,
    )
    options = EdgeOptions(
        backend=backend, backend_options=backend_options, wire_dtype=wire_dtype, preprocess=preprocess
    )
    chosen = (against_backend, against_provider, against_precision, against_target)
    other = None
    if against is not None or any(item is not None for item in chosen):
        other = (against or bundle, _other_options(options, *chosen))
    request = ParityRequest(
        bundle, model, options, images, prompts, max_new_tokens, dump, other, gate, layers=report is not None
    )
    if not bisect:
        _measure(request, report, as_json)
    elif report is not None or gate is not None:
        raise InputError(
            "--bisect cannot be combined with --report or --gate", field="--bisect", remedy="Run them separately."
        )
    else:
        _bisect(request, tolerance, as_json)


def _other_options(
    options: EdgeOptions, backend: str | None, provider: str | None, precision: str | None, target: str | None
) -> EdgeOptions:
    """The options of the --against side; what is not given has its default, not the first side's value."""
    backend_options = replace(
        options.backend_options,
        precision=precision,
        provider=provider or "auto",
        target=target,
        device="cpu",
        dtype="auto",
    )
    return replace(options, backend=backend or "onnxruntime", backend_options=backend_options, preprocess="reference")


def _measure(request: ParityRequest, page: Path | None, as_json: bool) -> None:
    """Measure, print, write the page, and exit with code 1 if a limit is exceeded.

    Args:
        page: HTML file to write; None for none.

    Raises:
        ContractError: an input that cannot be used.
    """
    from rich.console import Console

    from qwen3vl_edge.tools.parity.report import print_report
    from qwen3vl_edge.tools.parity.run import run_parity

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


def _bisect(request: ParityRequest, tolerance: float | None, as_json: bool) -> None:
    """Print the first layer at which both sides differ, and exit with code 1 if there is one.

    Args:
        tolerance: relative L2 of a layer; None for the looser of both sides' defaults.

    Raises:
        ContractError: an input that cannot be used, or a side that shows no layers.
    """
    from rich.console import Console

    from qwen3vl_edge.tools.parity.layers.search import search

    _quiet()
    with Console(stderr=True).status("bisecting") as status:
        report = search(request, tolerance, status.update)
    if as_json:
        sys.stdout.write(json.dumps(_bisection_json(report), indent=1) + "\n")
    else:
        _print_bisection(report)
    if report.first is not None:
        raise SystemExit(1)


def _bisection_json(report: SearchReport) -> dict[str, Any]:
    first = report.first
    return {
        "sides": report.sides,
        "tolerance": report.bisections[0].tolerance if first is None else first.tolerance,
        "first_layer": None if first is None or first.first is None else first.first.layer,
        "first": None if first is None else asdict(first),
        "cases": [
            {name: getattr(item, name) for name in ("precision", "bucket", "graph", "picture")}
            | {"first_layer": item.first.layer if item.first else None}
            for item in report.bisections
        ],
        "skipped": report.skipped,
    }


def _print_bisection(report: SearchReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from qwen3vl_edge.tools.parity.layers.names import MEANING, part_of

    console = Console()
    count = len(report.bisections)
    lines = [f"{report.sides[0]} against {report.sides[1]}, {count} comparisons (pictures times graphs)"]
    lines += [f"not searched: {what} ({reason})" for what, reason in report.skipped.items()]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    first = report.first
    if first is None or first.first is None:
        gaps = [(gap.relative_l2 / item.tolerance, gap, item) for item in report.bisections for gap in item.gaps]
        _, worst, case = max(gaps, key=lambda gap: gap[0])
        console.print(
            f"no layer parts by more than {case.tolerance:g}: the largest is {worst.layer}, relative L2 "
            f"{worst.relative_l2:.1e}",
            highlight=False,
            soft_wrap=True,
        )
        return
    parted = sorted({(item.precision, item.label) for item in report.bisections if item.first is not None})
    console.print(
        "graphs that part: " + ", ".join(f"{precision} {label}" for precision, label in parted),
        highlight=False,
        soft_wrap=True,
    )
    table = Table(title=f"{first.precision}, bucket {first.label}, {first.picture}", title_justify="left")
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
        f"first layer that parts by more than {first.tolerance:g}: [bold]{first.first.layer}[/]"
        + (f" ({meaning})" if meaning else ""),
        highlight=False,
        soft_wrap=True,
    )


def _check_plotting() -> None:
    """Checked before minutes of measuring, not after."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "the page's plots need matplotlib",
            field="--report",
            remedy="Install it with: pip install 'qwen3vl-edge[report]'",
        )


def _write(page: Path, text: str) -> None:
    from qwen3vl_edge.contract.formats import atomic

    try:
        atomic.write_bytes(page, text.encode())
    except OSError as error:
        raise InputError(f"{page} cannot be written ({error.strerror})", field="--report") from None


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
