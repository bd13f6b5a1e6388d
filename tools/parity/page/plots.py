"""The page's figures, as inline SVG whose text takes the page's own font and colour."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

from qwen3vl_edge.tools.parity.encoder import EncoderRow, Measurement
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.findings import LayerFindings
from qwen3vl_edge.tools.parity.layers.names import module_of, part_of
from qwen3vl_edge.tools.parity.output_error import HISTOGRAM_EDGES

# The two sides' colours, of equal weight on white and on black.
CANDIDATE, AGAINST = "#3f83d6", "#e0862c"
BAD, NEUTRAL = "#d64545", "#808080"
OUTPUT_COLOURS = ("#3f83d6", "#2e9e5b", "#a860c9", "#c9a227", "#3aa6a6", "#c96f8b")
INK = "#010203"  # replaced by the page's text colour
LEGEND_LETTERS = 118  # that fit on one line of a figure, counting 8 for a line and the space around it
FLOOR = 1e-16  # drawn in place of zero on a logarithmic axis
WIDTH = 10.6  # inches; the page scales it
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": NEUTRAL,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": NEUTRAL,
    "grid.alpha": 0.22,
    "legend.frameon": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
}
Figure = TypeVar("Figure", bound=Callable[..., Markup])


def styled(draw: Figure) -> Figure:
    """Draw with `STYLE`, without a change of the importing program's settings."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **options: Any) -> Markup:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*arguments, **options)

    return drawn  # type: ignore[return-value]


@styled
def cosine_figure(sides: Sequence[tuple[str, Sequence[EncoderRow]]]) -> Markup:
    """1 - cosine by graph, a mark per output; one panel per side. Lower is better."""
    figure, axes = _panels(len(sides), 3.3)
    buckets = list(dict.fromkeys(row.label for _, rows in sides for row in rows))
    outputs = list(dict.fromkeys(row.output for _, rows in sides for row in rows))
    for axis, (label, rows) in zip(axes, sides, strict=True):
        for index, output in enumerate(outputs):
            mine = [row for row in rows if row.output == output]
            xs = [buckets.index(row.label) + 0.13 * (index - (len(outputs) - 1) / 2) for row in mine]
            ys = [max(1 - row.distance.cosine, FLOOR) for row in mine]
            axis.plot(xs, ys, "o", ms=6, color=OUTPUT_COLOURS[index % len(OUTPUT_COLOURS)], label=output)
        axis.axhline(max(1 - max(row.bound.min_cosine for row in rows), FLOOR), color=BAD, lw=1, ls="--", label="limit")
        axis.set(yscale="log", title=label, xticks=range(len(buckets)), xlim=(-0.6, len(buckets) - 0.4))
        axis.set_xticklabels(buckets, rotation=30 if len(buckets) > 5 else 0)
    axes[0].set_ylabel("1 − cosine")
    _legend(figure, axes[0])
    return _svg(figure, "cosine")


@styled
def layer_figure(layers: LayerFindings, candidate: str, against: str | None) -> Markup:
    """Relative L2 by layer, a line per graph; mergers, which leave the stream, as diamonds."""
    figure, axes = _panels(1, 3.6)
    axis = axes[0]
    names = list(dict.fromkeys(row.layer for row in layers.rows))
    for label, colour, field in ((candidate, CANDIDATE, "candidate"), (against, AGAINST, "against")):
        if label is None:
            continue
        for index, bucket in enumerate(dict.fromkeys(row.label for row in layers.rows)):
            rows = [row for row in layers.rows if row.label == bucket and getattr(row, field) is not None]
            points = [(names.index(row.layer), max(getattr(row, field).relative_l2, FLOOR), row.layer) for row in rows]
            stream = [(x, y) for x, y, name in points if not _is_merger(name)]
            mergers = [(x, y) for x, y, name in points if _is_merger(name)]
            for line, form in ((stream, "-"), (mergers, "D")):
                legend = label if form == "-" and index == 0 else ""
                xs, ys = [x for x, _ in line], [y for _, y in line]
                axis.plot(xs, ys, form, color=colour, lw=1.3, ms=4.5, alpha=0.85, label=legend)
    axis.axhline(layers.tolerance, color=BAD, lw=1, ls="--", label=f"tolerance {layers.tolerance:g}")
    ticks = [index for index, name in enumerate(names) if part_of(name) != "attn.residual"]
    shown = ticks[:: max(1, len(ticks) // 28)]
    axis.set(yscale="log", ylabel="relative L2", xticks=shown, xlim=(-0.5, len(names) - 0.5))
    axis.set_xticklabels([_short(names[index]) for index in shown], rotation=45, ha="right", fontsize=8.5)
    _legend(figure, axis)
    return _svg(figure, "layers")


@styled
def activation_figure(layers: LayerFindings) -> Markup:
    """Magnitudes of the reference's layers, and the largest channel over the median one; worst over the buckets."""
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = _panels(2, 3.1, share=False)
    names = list(dict.fromkeys(row.layer for row in layers.rows))
    stream = [name for name in names if not _is_merger(name)]
    by_name = {name: [row.activation for row in layers.rows if row.layer == name] for name in stream}
    for field, colour, label in (
        ("largest", BAD, "largest"), ("p999", AGAINST, "99.9 %"), ("rms", CANDIDATE, "root mean square"),
    ):  # fmt: skip
        axes[0].plot(
            [max(getattr(item, field) for item in by_name[name]) for name in stream], color=colour, label=label
        )
    axes[0].set(yscale="log", title="|activation| of the residual stream")
    axes[1].bar(
        range(len(stream)), [max(item.channel_peak for item in by_name[name]) for name in stream], color=CANDIDATE
    )
    axes[1].set(title="largest channel over the median channel")
    axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    for axis in axes:
        shown = list(range(0, len(stream), max(1, len(stream) // 12)))
        axis.set_xticks(shown)
        axis.set_xticklabels([_short(stream[index]) for index in shown], rotation=45, ha="right", fontsize=8.5)
    _legend(figure, axes[0])
    return _svg(figure, "activations")


@styled
def error_figure(measurements: Sequence[Measurement], candidate: str, against: str | None) -> Markup:
    """Histograms of the errors, all pictures together, one panel per output."""
    outputs = list(measurements[0].candidate)
    figure, axes = _panels(len(outputs), 2.6)
    for axis, output in zip(axes, outputs, strict=True):
        for label, colour, field in ((candidate, CANDIDATE, "candidate"), (against, AGAINST, "against")):
            counts = [getattr(item, field)[output].histogram for item in measurements if getattr(item, field)]
            if label is not None and counts:
                share = 100 * np.sum(counts, axis=0) / max(np.sum(counts), 1)
                axis.stairs(share, HISTOGRAM_EDGES, color=colour, fill=True, alpha=0.25)
                axis.stairs(share, HISTOGRAM_EDGES, color=colour, lw=1.2, label=label)
        axis.set(title=output, xlim=_used(measurements))
        axis.xaxis.set_major_formatter(lambda value, _: f"1e{value:.0f}")
        axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axes[0].set_ylabel("% of values")
    _legend(figure, axes[0])
    return _svg(figure, "errors")


@styled
def answer_figure(sides: Sequence[tuple[str, Sequence[PromptResult]]]) -> Markup:
    """First token that differs, and KL of the logits at each step, over prompts at native grids."""
    figure, axes = _panels(2, 3.0, share=False)
    steps = max((len(item.kl) for _, results in sides for item in results), default=0)
    wide = 0.8 / len(sides)
    for index, ((label, results), colour) in enumerate(zip(sides, (CANDIDATE, AGAINST), strict=False)):
        exact = [item for item in results if item.exact]
        tokens = [item.first_divergence for item in exact if item.first_divergence is not None]
        counts = np.bincount(tokens, minlength=max(steps, 1)) if tokens else np.zeros(max(steps, 1), int)
        axes[0].bar(
            np.arange(len(counts)) + wide * (index - (len(sides) - 1) / 2), counts, wide, color=colour, label=label
        )
        by_step = [[item.kl[step] for item in exact if len(item.kl) > step] for step in range(steps)]
        largest = [max([*values, FLOOR]) if values else np.nan for values in by_step]
        middle = [max(float(np.median(values)), FLOOR) if values else np.nan for values in by_step]
        axes[1].plot(largest, "o-", ms=3.5, lw=1.3, color=colour, label=f"{label}, largest")
        axes[1].plot(middle, "--", lw=1.1, color=colour, label=f"{label}, median")
    axes[0].set(title="first token that differs", xlabel="token", ylabel="prompts", ylim=(0, None))
    axes[0].yaxis.get_major_locator().set_params(integer=True)
    if not axes[0].patches or max(patch.get_height() for patch in axes[0].patches) == 0:
        axes[0].set_ylim(0, 1)
        axes[0].text(0.5, 0.5, "no answer differs", ha="center", transform=axes[0].transAxes)
    axes[1].set(yscale="log", title="KL(unsplit ‖ split) by step, nats", xlabel="token")
    _legend(figure, axes[1])
    return _svg(figure, "answers")


def _panels(count: int, height: float, *, share: bool = True) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, count, sharey=share, squeeze=False)[0]
    figure.patch.set_alpha(0)
    for axis in axes:
        axis.patch.set_alpha(0)
    return figure, list(axes)


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    columns = max(1, LEGEND_LETTERS // (max(map(len, labels)) + 8))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), columns), frameon=False)


def _svg(figure: Any, name: str) -> Markup:
    """The figure as an `<svg>` element; `name` keeps ids apart from those of other figures on the page.

    Only here a text becomes markup that the page does not escape: matplotlib escapes the labels in it.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[a-zA-Z.]+2?d?_\d+"', "", text)  # group names, the same in every figure
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1))


def _used(measurements: Sequence[Measurement]) -> tuple[float, float]:
    """The decades with values."""
    filled = np.sum(
        [
            error.histogram
            for item in measurements
            for side in (item.candidate, item.against)
            for error in (side or {}).values()
        ],
        axis=0,
    ).nonzero()[0]
    if not len(filled):
        return -9.0, 3.0
    # Exact zeros fill the first bin and would stretch the axis.
    first = filled[1] if filled[0] == 0 and len(filled) > 1 else filled[0]
    return float(HISTOGRAM_EDGES[first]), float(HISTOGRAM_EDGES[filled[-1] + 1])


def _is_merger(layer: str) -> bool:
    return "merger" in module_of(layer)


def _short(layer: str) -> str:
    """`3 attn`, `deepstack 0`, `merger`, `embed`: a layer's name for an axis."""
    module, part = module_of(layer), part_of(layer)
    if module == "patch_embed":
        return "embed"
    if module.startswith("deepstack"):
        return f"deepstack {module.rsplit('.', 1)[1]}"
    if module == "merger":
        return "merger"
    number = module.split(".")[1]
    return f"{number} attn" if part.startswith("attn") else f"block {number}"
