"""Values of the page's templates, derived from the findings: joined, sorted and cut; templates format them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.tools.parity.encoder import EncoderRow, Measurement
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.findings import Findings
from qwen3vl_edge.tools.parity.layers.drift import LayerRow
from qwen3vl_edge.tools.parity.output_error import QUANTILES
from qwen3vl_edge.tools.parity.page.heat_map import HeatMap, heat_map
from qwen3vl_edge.tools.parity.report import Between, ParityReport

SHOWN_PICTURES = 6
SHOWN_OUTLIERS = 8
# Percentages of the errors' quantiles: 50%, 99.9%, largest.
QUANTILE_HEADINGS = ["largest" if share == 1 else f"{share:.1%}".replace(".0%", "%") for share in QUANTILES]


@dataclass(frozen=True)
class WorstPicture:
    """One picture at one bucket, with the output that has the largest error there.

    Attributes:
        cosine: of `output` against PyTorch.
    """

    measurement: Measurement
    output: str
    cosine: float
    map: HeatMap


@dataclass(frozen=True)
class Agreement:
    """Greedy answers of one side against the unsplit model's.

    Attributes:
        prompts: how many keep their pictures' native grids; `identical` of them have the same tokens.
        largest_kl: nats, over these prompts and all steps.
        resized: prompts whose picture a bucket resized; `resized_agreeing` of them have the same tokens.
    """

    label: str
    prompts: int
    identical: int
    largest_kl: float
    resized: int
    resized_agreeing: int


@dataclass(frozen=True)
class FactGroup:
    """Versions and hashes under one heading; `files` are paths and their sha256."""

    heading: str
    pairs: tuple[tuple[str, Any], ...]
    files: dict[str, str]


def worst_row(rows: Sequence[EncoderRow]) -> EncoderRow:
    """The row of the least cosine; NaN is less than any."""
    return min(rows, key=lambda row: (row.distance.cosine == row.distance.cosine, row.distance.cosine))


def encoder_rows(report: ParityReport) -> Iterator[tuple[EncoderRow, EncoderRow | None, Between | None]]:
    """Each graph's output with the other side's row and the distance of both, where there are such."""
    against = report.against
    other = {} if against is None else {row.key: row for row in against.encoder}
    between = {} if against is None else {row.key: row for row in against.between}
    for row in report.encoder:
        yield row, other.get(row.key), between.get(row.key)


def worst_pictures(findings: Findings) -> Iterator[WorstPicture]:
    """The pictures with the worst tokens, worst first."""
    pairs = (pair for pairs in findings.measured.worst.values() for pair in pairs)
    for measurement, case in sorted(pairs, key=lambda pair: -pair[0].badness)[:SHOWN_PICTURES]:
        output, error = max(
            measurement.candidate.items(),
            key=lambda pair: (pair[1].worst_token != pair[1].worst_token, pair[1].worst_token),
        )
        drawn = heat_map(case, error.token_error, findings.vision, findings.preprocessing)
        yield WorstPicture(measurement, output, error.distance.cosine, drawn)


def agreement(label: str, results: Sequence[PromptResult]) -> Agreement:
    exact = [item for item in results if item.exact]
    resized = [item for item in results if not item.exact]
    return Agreement(
        label=label,
        prompts=len(exact),
        identical=sum(item.agrees for item in exact),
        largest_kl=max((value for item in exact for value in item.kl), default=0.0),
        resized=len(resized),
        resized_agreeing=sum(item.agrees for item in resized),
    )


def different_answers(sides: Sequence[tuple[str, Sequence[PromptResult]]]) -> list[tuple[str, PromptResult]]:
    """Answers that differ from the unsplit model's, those at native grids first."""
    return [
        (label, item)
        for label, results in sides
        for item in sorted(results, key=lambda item: not item.exact)
        if not item.agrees
    ]


def quantiles(findings: Findings) -> Iterator[tuple[str, str, list[float]]]:
    """Side, output and the error's quantiles, each the largest over the pictures."""
    measurements = findings.measured.measurements
    for label, field in ((findings.candidate, "candidate"), (findings.against, "against")):
        for output in measurements[0].candidate if label is not None else ():
            by_picture = [getattr(item, field)[output].quantiles for item in measurements if getattr(item, field)]
            yield str(label), output, [max(values) for values in zip(*by_picture, strict=True)]


def outliers(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """The layers with the largest outlier channels, each at its worst bucket."""
    worst = {row.layer: row for row in sorted(rows, key=lambda row: row.activation.channel_peak)}
    return sorted(worst.values(), key=lambda row: -row.activation.channel_peak)[:SHOWN_OUTLIERS]


def fact_groups(facts: dict[str, dict[str, Any]]) -> Iterator[FactGroup]:
    """Facts in reading form: nested tables on one line, without empty ones."""
    for heading, group in facts.items():
        pairs = [(key, _on_one_line(value)) for key, value in group.items() if key != "files" and value is not None]
        yield FactGroup(heading[0].upper() + heading[1:], tuple(pairs), group.get("files", {}))


def _on_one_line(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return value
