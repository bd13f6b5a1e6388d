"""One self-contained HTML page of a parity run: no script, nothing fetched, readable in light and dark.

The page is `page.html.jinja`; every value in it is escaped but the plots' SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qwen3vl_edge.tools.parity.alone_summary import summarize_alone
from qwen3vl_edge.tools.parity.encoder import EncoderRow
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.findings import Findings, LayerFindings
from qwen3vl_edge.tools.parity.layers.drift import first_drift
from qwen3vl_edge.tools.parity.layers.names import MEANING, module_of, part_of
from qwen3vl_edge.tools.parity.page import plots, values
from qwen3vl_edge.tools.parity.page.heat_map import gradient
from qwen3vl_edge.tools.parity.report import worst_outputs


def page_of(findings: Findings) -> str:
    """The whole page.

    Raises:
        jinja2.UndefinedError: a template names a value that is not there.
    """
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja").render(
        report=findings.report,
        gate=findings.gate,
        candidate=findings.candidate,
        candidate_colour=plots.CANDIDATE,
        against=findings.against,
        against_colour=plots.AGAINST,
        model=findings.facts["bundle"]["model"],
        facts=list(values.fact_groups(findings.facts)),
        pictures=list(values.worst_pictures(findings)),
        gradient=gradient(),
        **_encoder_values(findings),
        **_layer_values(findings, findings.layers),
        **_answer_values(findings),
        **_distribution_values(findings),
    )


def _encoder_values(findings: Findings) -> dict[str, Any]:
    report = findings.report
    sides: list[tuple[str, Sequence[EncoderRow]]] = [(findings.candidate, report.encoder)]
    if report.against is not None:
        sides.append((report.against.label, report.against.encoder))
    return {
        "worst_row": values.worst_row(report.encoder),
        "encoder_rows": list(values.encoder_rows(report)),
        "cosine_figure": plots.cosine_figure(sides),
        "sets": [(item.precision, worst_outputs(item.encoder)) for item in report.sets],
    }


def _layer_values(findings: Findings, layers: LayerFindings | None) -> dict[str, Any]:
    if layers is None:
        return {"layers": None}
    drift = first_drift(layers.rows, layers.tolerance)
    return {
        "layers": layers,
        "drift": drift,
        "drift_meaning": None if drift is None else MEANING.get(part_of(drift.layer)),
        "first_module": "none" if drift is None else module_of(drift.layer),
        "worst_layer": max(layers.rows, key=lambda row: row.candidate.relative_l2),
        "layer_figure": plots.layer_figure(layers, findings.candidate, findings.against),
        "activation_figure": plots.activation_figure(layers),
        "outliers": values.outliers(layers.rows),
    }


def _answer_values(findings: Findings) -> dict[str, Any]:
    report = findings.report
    if not report.prompts:
        return {}
    sides: list[tuple[str, Sequence[PromptResult]]] = [(findings.candidate, report.prompts)]
    if report.against is not None:
        sides.append((report.against.label, report.against.prompts))
    return {
        "alone": summarize_alone(report.prompts),
        "agreement": [values.agreement(label, results) for label, results in sides],
        "answer_figure": plots.answer_figure(sides),
        "different_answers": values.different_answers(sides),
    }


def _distribution_values(findings: Findings) -> dict[str, Any]:
    measurements = findings.measured.measurements
    return {
        "error_figure": plots.error_figure(measurements, findings.candidate, findings.against),
        "quantile_headings": [(heading, "number") for heading in values.QUANTILE_HEADINGS],
        "quantiles": list(values.quantiles(findings)),
    }
