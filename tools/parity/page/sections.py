"""The page's sections, each from findings to HTML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qwen3vl_edge.tools.parity.encoder import EncoderRow, Measurement
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.findings import Findings, LayerFindings
from qwen3vl_edge.tools.parity.gate import GateRow
from qwen3vl_edge.tools.parity.layers.drift import first_drift
from qwen3vl_edge.tools.parity.layers.names import MEANING, module_of, part_of
from qwen3vl_edge.tools.parity.output_error import QUANTILES
from qwen3vl_edge.tools.parity.page import plots
from qwen3vl_edge.tools.parity.page.heat_map import gradient, heat_map
from qwen3vl_edge.tools.parity.page.html import (
    Column,
    Html,
    definitions,
    element,
    figure,
    folded,
    join,
    number,
    passed,
    section,
    table,
)
from qwen3vl_edge.tools.parity.samples import Case

SHOWN_FAILURES = 16
SHOWN_PICTURES = 6
SHOWN_OUTLIERS = 8
SHOWN_ANSWERS = 40


def gate_section(findings: Findings) -> Html:
    """Limits: those missed in the open, all of them folded."""
    rows, failures = findings.report.gate, findings.report.failures
    count = f"{len(rows) - len(failures)} of {len(rows)} limits hold ({findings.gate.source})."
    if len(failures) > SHOWN_FAILURES:
        count += f" The first {SHOWN_FAILURES} that were missed:"
    columns = [Column("what"), Column("figure"), Column("measured", True), Column("required", True), Column("")]
    failed = [table(columns, [_gate_cells(row) for row in failures[:SHOWN_FAILURES]])] if failures else []
    return section(
        "gate", "Release check", element("p", count), *failed,
        folded("All limits", table(columns, [_gate_cells(row) for row in rows])),
    )  # fmt: skip


def _gate_cells(row: GateRow) -> list[Any]:
    measured = "not measured" if row.measured is None else f"{row.measured:.7g}"
    return [row.what, row.figure, measured, f"{'≥' if row.at_least else '≤'} {row.limit:g}", passed(row.passed)]


def encoder_section(findings: Findings) -> Html:
    """Cosine and error of each output in each bucket, both sides in one row."""
    report = findings.report
    sides: list[tuple[str, Sequence[EncoderRow]]] = [(findings.candidate, report.encoder)]
    if report.against is not None:
        sides.append((report.against.label, report.against.encoder))
    return section(
        "encoder",
        "Encoder outputs",
        element("p", "Each output against PyTorch in fp32 on the same pixels, worst over the pictures.", class_="soft"),
        figure(plots.cosine_figure(sides), "1 − cosine; lower is better. A bucket is T×H×W patches."),
        _encoder_table(findings),
    )


def _encoder_table(findings: Findings) -> Html:
    """One row per bucket and output; with two sides the largest error gives way (it is among the quantiles)."""
    report = findings.report
    other = {} if report.against is None else {(row.bucket, row.output): row for row in report.against.encoder}
    between = {} if report.against is None else {(row.bucket, row.output): row for row in report.against.between}
    two = report.against is not None
    figures = [Column(name, True) for name in ("cosine", "relative L2", "worst token")]
    columns = [Column("bucket"), Column("output"), *figures, *([] if two else [Column("max abs", True)]), Column("")]
    groups = [("", 2), (findings.candidate, 4)]
    if two:
        columns += [*figures, Column("relative L2", True)]
        groups += [(str(findings.against), 3), ("side to side", 1)]
    rows = []
    for row in report.encoder:
        key = (row.bucket, row.output)
        cells = [row.bucket + (" dynamic" if row.graph == "dynamic" else ""), row.output, *_encoder_cells(row)]
        cells += [] if two else [f"{row.distance.max_abs:.1e}"]
        cells.append(passed(row.passed, bad=f"below {row.limit:g}"))
        if two:
            cells += _encoder_cells(other[key]) if key in other else ["—"] * 3
            cells.append(f"{between[key].distance.relative_l2:.1e}" if key in between else "—")
        rows.append(cells)
    return table(columns, rows, groups if two else ())


def _encoder_cells(row: EncoderRow) -> list[Any]:
    return [f"{row.distance.cosine:.7f}", f"{row.distance.relative_l2:.1e}", f"{row.worst_token:.1e}"]


def layer_section(findings: Findings, layers: LayerFindings) -> Html:
    """Error by layer, and which layer is the first to drift."""
    return section(
        "layers",
        "Error by layer",
        element("p", f"From {layers.label}, against PyTorch fp32; the worst picture of each bucket.", class_="soft"),
        element("p", _drift_sentence(layers)),
        figure(
            plots.layer_figure(layers, findings.candidate, findings.against),
            "Relative L2 of the residual stream after each half of each block, one line per bucket; diamonds are "
            "mergers, which leave the stream.",
        ),
        folded("All layers", _layer_table(findings, layers)),
    )


def _drift_sentence(layers: LayerFindings) -> Html:
    drift = first_drift(layers.rows, layers.tolerance)
    if drift is None:
        worst = max(layers.rows, key=lambda row: row.candidate.relative_l2)
        return Html(
            f"No layer exceeds the tolerance of {layers.tolerance:g}; the largest error is "
            f"{number(worst.candidate.relative_l2).markup} at {element('code', worst.layer).markup}."
        )
    meaning = MEANING.get(part_of(drift.layer), "")
    return join(
        [
            Html('<span class="fail">First layer to drift:</span>'),
            element("code", drift.layer),
            f"({meaning + ', ' if meaning else ''}bucket {drift.bucket}, {drift.picture}): relative L2",
            number(drift.candidate.relative_l2),
            f"where {layers.tolerance:g} is tolerated. To look inside the block:",
            element("code", "qwen3vl-edge parity --bisect"),
        ]
    )


def _layer_table(findings: Findings, layers: LayerFindings) -> Html:
    columns = [Column("bucket"), Column("layer"), Column("relative L2", True), Column("cosine", True)]
    if findings.against is not None:
        columns += [Column(f"{findings.against}: relative L2", True), Column("cosine", True)]
    rows = []
    for row in layers.rows:
        cells: list[Any] = [row.bucket, element("code", row.layer)]
        cells += [f"{row.candidate.relative_l2:.2e}", f"{row.candidate.cosine:.7f}"]
        if findings.against is not None:
            cells += ["—", "—"] if row.against is None else [
                f"{row.against.relative_l2:.2e}", f"{row.against.cosine:.7f}"
            ]  # fmt: skip
        rows.append(cells)
    return table(columns, rows)


def picture_section(findings: Findings) -> Html:
    """The pictures with the worst tokens, and where in them."""
    kept = sorted(
        (pair for pairs in findings.measured.worst.values() for pair in pairs), key=lambda pair: -pair[0].badness
    )
    shown = [_picture(findings, *pair) for pair in kept[:SHOWN_PICTURES]]
    return section(
        "pictures",
        "Worst pictures",
        element(
            "p",
            "Left, what the encoder saw; right, the error of each visual token over it. A token's error is the L2 of "
            "its difference to PyTorch over the root mean square of the picture's token norms.",
            class_="soft",
        ),
        element("div", join(shown), class_="pictures"),
    )


def _picture(findings: Findings, measurement: Measurement, case: Case) -> Html:
    name, error = max(
        measurement.candidate.items(),
        key=lambda pair: (pair[1].worst_token != pair[1].worst_token, pair[1].worst_token),
    )
    found = heat_map(case, error.token_error, findings.vision, findings.preprocessing)
    where = f"row {found.row}, column {found.column}" + (f", frame pair {found.frame}" if case.grid.t > 1 else "")
    caption = join(
        [
            f"{measurement.picture} at {measurement.grid} ({measurement.graph}), output {name}: cosine",
            number(error.distance.cosine, ".7f"),
            "and worst token",
            number(found.worst),
            f"at {where}",
        ]
    )
    alt = element("figcaption", caption).markup
    width, height = found.size
    pair = "".join(
        f'<img src="{source}" alt="{label}" width="{width}" height="{height}">'
        for source, label in ((found.picture, "picture"), (found.overlay, "token error over the picture"))
    )
    scale = f'<div class="scale">0<i style="background: {gradient()}"></i>{found.worst:.1e}</div>'
    return Html(f'<figure><div class="pair">{pair}</div>{scale}{alt}</figure>')


def answer_section(findings: Findings) -> Html:
    """Agreement of the greedy answers, where they part, and how far the logits are."""
    report = findings.report
    if not report.prompts:
        return section(
            "answers", "Answers", element("p", "Not measured: no prompts were asked. A dump holds no answers.")
        )
    sides: list[tuple[str, Sequence[PromptResult]]] = [(findings.candidate, report.prompts)]
    if report.against is not None:
        sides.append((report.against.label, report.against.prompts))
    columns = [
        Column("side"), Column("prompts", True), Column("identical answers", True), Column("agreement", True),
        Column("largest KL, nats", True), Column("resized to a bucket, agreeing", True),
    ]  # fmt: skip
    return section(
        "answers",
        "Answers",
        element(
            "p",
            f"Greedy tokens and logits against the unsplit model in fp32, {report.wire_dtype} on the wire, "
            f"{report.min_agreement:.0%} required. Prompts whose picture was resized to a bucket are counted apart: "
            "the model saw another picture there.",
            class_="soft",
        ),
        table(columns, [_agreement_cells(label, results) for label, results in sides]),
        figure(
            plots.answer_figure(sides),
            "Left, at which token answers part; right, the logits along the unsplit answer. Prompts at native grids.",
        ),
        *_different_answers(sides),
    )


def _agreement_cells(label: str, results: Sequence[PromptResult]) -> list[Any]:
    exact = [item for item in results if item.exact]
    resized = [item for item in results if not item.exact]
    same = sum(item.agrees for item in exact)
    largest = max((value for item in exact for value in item.kl), default=0.0)
    apart = f"{sum(item.agrees for item in resized)} of {len(resized)}" if resized else "none"
    return [label, len(exact), same, f"{same / len(exact):.2%}" if exact else "—", f"{largest:.1e}", apart]


def _different_answers(sides: Sequence[tuple[str, Sequence[PromptResult]]]) -> list[Html]:
    columns = [
        Column("side"), Column("prompt", long=True), Column("token", True), Column("unsplit", long=True),
        Column("split", long=True),
    ]  # fmt: skip
    rows = [
        [
            label,
            item.name + ("" if item.exact else " (resized)"),
            item.first_divergence,
            item.unsplit_text,
            item.split_text,
        ]
        for label, results in sides
        for item in sorted(results, key=lambda item: not item.exact)
        if not item.agrees
    ]
    if not rows:
        return []
    return [folded(f"{len(rows)} answers that differ", table(columns, rows[:SHOWN_ANSWERS]))]


def distribution_section(findings: Findings) -> Html:
    """Sizes of errors by quantile, sizes of activations, and the channels that stick out."""
    measurements = findings.measured.measurements
    parts = [
        element("h3", "Error of single values"),
        figure(
            plots.error_figure(measurements, findings.candidate, findings.against),
            "Share of an output's values by |error|, in quarter decades, all pictures and buckets together.",
        ),
        _quantile_table(findings),
    ]
    if findings.layers is not None:
        parts += [
            element("h3", "Activations"),
            figure(
                plots.activation_figure(findings.layers),
                "PyTorch's residual stream, worst over the buckets. A channel far above the median one costs "
                "every other channel its resolution when one scale serves them all.",
            ),
            _outlier_table(findings.layers),
        ]
    return section("distribution", "Distribution and outliers", *parts)


def _quantile_table(findings: Findings) -> Html:
    columns = [Column("side"), Column("output")]
    columns += [Column("largest" if share == 1 else f"{share:.1%}".replace(".0%", "%"), True) for share in QUANTILES]
    rows = []
    for label, field in ((findings.candidate, "candidate"), (findings.against, "against")):
        for name in findings.measured.measurements[0].candidate if label is not None else ():
            found = [
                getattr(item, field)[name].quantiles for item in findings.measured.measurements if getattr(item, field)
            ]
            rows.append([label, name, *(f"{max(values):.1e}" for values in zip(*found, strict=True))])
    return table(columns, rows)


def _outlier_table(layers: LayerFindings) -> Html:
    columns = [
        Column("layer"), Column("bucket"), Column("channel", True), Column("over the median channel", True),
        Column("largest", True), Column("99.9 %", True), Column("root mean square", True),
    ]  # fmt: skip
    worst = {row.layer: row for row in sorted(layers.rows, key=lambda row: row.activation.channel_peak)}
    chosen = sorted(worst.values(), key=lambda row: -row.activation.channel_peak)[:SHOWN_OUTLIERS]
    rows = [
        [
            element("code", row.layer), row.bucket, row.activation.channel, f"{row.activation.channel_peak:.1f}×",
            f"{row.activation.largest:.3g}", f"{row.activation.p999:.3g}", f"{row.activation.rms:.3g}",
        ]
        for row in chosen
    ]  # fmt: skip
    return join([element("p", f"The {len(rows)} layers whose largest channel stands out most:"), table(columns, rows)])


def facts_section(findings: Findings) -> Html:
    """What was measured, with what, where."""
    parts: list[Html] = []
    for heading, facts in findings.facts.items():
        parts += [element("h3", heading[0].upper() + heading[1:]), definitions(_flat(facts))]
        if "files" in facts:
            rows = [[path, element("code", digest)] for path, digest in facts["files"].items()]
            parts.append(
                folded(f"sha256 of {len(rows)} files", table([Column("file"), Column("sha256", long=True)], rows))
            )
    return section("facts", "Versions and hashes", *parts)


def _flat(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """Facts in reading form: nested tables on one line, hashes in fixed width, empty ones left out."""
    pairs: list[tuple[str, Any]] = []
    for key, value in facts.items():
        if key == "files" or value is None:
            continue
        if isinstance(value, str) and value.startswith("{"):
            value = json.loads(value)
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        shown = element("code", value) if key.endswith(("hash", "sha256", "identity", "command")) else value
        pairs.append((key.replace("_", " "), shown))
    return pairs


def anchors(findings: Findings) -> list[tuple[str, str]]:
    """Section anchors and their short names, in the order of the page."""
    found = [("gate", "Release check"), ("encoder", "Encoder outputs"), ("layers", "Layers"), ("pictures", "Pictures")]
    found += [("answers", "Answers"), ("distribution", "Distribution"), ("facts", "Versions and hashes")]
    return [pair for pair in found if pair[0] != "layers" or findings.layers is not None]


def first_module(layers: LayerFindings) -> str:
    """The module that drifts first, for the summary; "none" where all hold."""
    drift = first_drift(layers.rows, layers.tolerance)
    return "none" if drift is None else module_of(drift.layer)
