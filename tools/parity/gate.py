"""Thresholds of a release, compared with the measurements; each becomes one row that passes or fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwen3vl_edge.tools.parity.encoder import Bound, EncoderRow
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.layers.drift import LayerRow
from qwen3vl_edge.tools.parity.limits import answer_kl, limits_of, wire_limits
from qwen3vl_edge.tools.parity.wire_forms import WireRow


@dataclass(frozen=True)
class EncoderLimits:
    """Limits of an encoder output, worst over the pictures; None where it is not limited.

    Attributes:
        max_token_error: of one token's L2 error, relative to the reference tokens' norms.
    """

    min_cosine: float | None = None
    max_relative_l2: float | None = None
    max_abs: float | None = None
    max_token_error: float | None = None

    @property
    def bound(self) -> Bound:
        """What the table of outputs shows of it."""
        unlimited = Bound()
        return Bound(
            unlimited.min_cosine if self.min_cosine is None else self.min_cosine,
            unlimited.max_relative_l2 if self.max_relative_l2 is None else self.max_relative_l2,
        )


@dataclass(frozen=True)
class AnswerLimits:
    """Limits of the greedy answers to prompts whose pictures keep their native grid.

    Attributes:
        min_agreement: share of them with the unsplit model's tokens.
        max_kl: nats at any step.
        min_prompts: the least number of prompts to compare.
        required: limits fail when no prompt was compared at all.
    """

    min_agreement: float
    max_kl: float | None = None
    min_prompts: int | None = None
    required: bool = False


@dataclass(frozen=True)
class Gate:
    """All limits of one set.

    Attributes:
        precision: of the set; "" where there is but one.
        outputs: limits per encoder output; `encoder` applies to those not named.
        max_layer_l2: relative L2 of the residual stream and the mergers; None where layers are not limited.
    """

    encoder: EncoderLimits
    answers: AnswerLimits
    outputs: dict[str, EncoderLimits] = field(default_factory=dict)
    max_layer_l2: float | None = None
    source: str = "the defaults of this precision"
    precision: str = ""

    def of_output(self, name: str) -> EncoderLimits:
        return self.outputs.get(name, self.encoder)


@dataclass(frozen=True)
class GateRow:
    """One limit and the measured value; None where nothing was measured."""

    what: str
    figure: str
    measured: float | None
    limit: float
    at_least: bool

    @property
    def passed(self) -> bool:
        """False for NaN, and without a measurement."""
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        """`encoder fp16 1x8x8 fixed embeds: cosine 0.99, required at least 0.999`."""
        measured = "not measured" if self.measured is None else f"{self.measured:.7g}"
        return f"{self.what}: {self.figure} {measured}, required at {'least' if self.at_least else 'most'} {self.limit}"


def default_gate(precision: str, wire_dtype: str, backend: str = "") -> Gate:
    """Limits of `tools/parity/limits.py` for these."""
    limits = limits_of(precision, backend)
    agreement = min(limits.min_agreement, wire_limits(wire_dtype).min_agreement)
    return Gate(
        EncoderLimits(limits.min_cosine, limits.max_relative_l2),
        AnswerLimits(agreement, answer_kl(precision, wire_dtype, backend)),
        precision=precision,
    )


def judge(
    gate: Gate, encoder: Sequence[EncoderRow], prompts: Sequence[PromptResult], layers: Sequence[LayerRow] | None
) -> list[GateRow]:
    """One row per limit and output, layer or set of answers.

    Args:
        prompts: all that were compared.
        layers: None where layers were not measured.
    """
    return judge_encoder(gate, encoder, layers) + _answers(gate.answers, prompts)


def judge_encoder(gate: Gate, encoder: Sequence[EncoderRow], layers: Sequence[LayerRow] | None = None) -> list[GateRow]:
    """The rows of a set that no answers were asked of."""
    rows = [gate_row for row in encoder for gate_row in _encoder(gate, row)]
    if gate.max_layer_l2 is not None:
        rows += _layers(gate, layers)
    return rows


def judge_wire(rows: Sequence[WireRow]) -> list[GateRow]:
    """One row per wire form and output: no error is larger than the form's own arithmetic explains."""
    return [
        GateRow(f"wire {row.form} {row.output}", "largest error over the largest explained", row.steps, 1.0, False)
        for row in rows
    ]


def _encoder(gate: Gate, row: EncoderRow) -> list[GateRow]:
    limits = gate.of_output(row.output)
    what = " ".join(filter(None, ("encoder", gate.precision, row.bucket, row.graph, row.output)))
    apart = row.distance
    figures = [
        ("cosine", apart.cosine, limits.min_cosine, True),
        ("relative L2", apart.relative_l2, limits.max_relative_l2, False),
        ("largest error", apart.max_abs, limits.max_abs, False),
        ("token error", row.worst_token, limits.max_token_error, False),
    ]
    return [GateRow(what, figure, value, limit, least) for figure, value, limit, least in figures if limit is not None]


def _layers(gate: Gate, layers: Sequence[LayerRow] | None) -> list[GateRow]:
    limit, of = gate.max_layer_l2 or 0.0, f" {gate.precision}" if gate.precision else ""
    if layers is None:
        return [GateRow(f"layers{of}", "relative L2", None, limit, at_least=False)]
    worst: dict[str, float] = {}
    for row in layers:
        values = (worst.get(row.layer, 0.0), row.candidate.relative_l2)
        worst[row.layer] = max(values, key=lambda value: (value != value, value))
    return [GateRow(f"layer{of} {name}", "relative L2", value, limit, at_least=False) for name, value in worst.items()]


def _answers(limits: AnswerLimits, prompts: Sequence[PromptResult]) -> list[GateRow]:
    exact = [item for item in prompts if item.exact]
    alone = _alone(prompts)
    if not exact and not limits.required:
        return alone
    agreement = sum(item.agrees for item in exact) / len(exact) if exact else None
    rows = [GateRow("answers", "agreement", agreement, limits.min_agreement, at_least=True)]
    if limits.max_kl is not None:
        steps = [value for item in exact for value in item.kl]
        rows.append(GateRow("answers", "largest KL", max(steps) if steps else None, limits.max_kl, at_least=False))
    if limits.min_prompts is not None:
        rows.append(GateRow("answers", "prompts at native grids", len(exact), limits.min_prompts, at_least=True))
    return rows + alone


def _alone(prompts: Sequence[PromptResult]) -> list[GateRow]:
    """No difference to transformers alone is left unexplained; the report tells the choices that explain one."""
    compared = [item.alone for item in prompts if item.alone is not None]
    if not compared:
        return []
    faults = sum(item.fault is not None for item in compared)
    return [GateRow("transformers alone", "prompts with another input", faults, 0, at_least=False)]
