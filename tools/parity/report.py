"""The report of a parity run, as JSON for scripts and as tables for people."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen3vl_edge.contract.bundle.distance import Distance
from qwen3vl_edge.tools.parity.alone_summary import summarize_alone
from qwen3vl_edge.tools.parity.encoder import EncoderRow
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.gate import GateRow
from qwen3vl_edge.tools.parity.sets import SetReport, Skipped
from qwen3vl_edge.tools.parity.wire_forms import WireRow

SHOWN_FAILURES = 32


@dataclass(frozen=True)
class Between:
    """The candidate's output compared with the other side's, worst over the pictures of a graph."""

    bucket: str
    graph: str
    output: str
    distance: Distance

    @property
    def key(self) -> tuple[str, str, str]:
        return self.bucket, self.graph, self.output


@dataclass(frozen=True)
class AgainstReport:
    """The other side of a comparison, compared with the same reference; it has no limits."""

    label: str
    encoder: tuple[EncoderRow, ...]
    between: tuple[Between, ...]
    prompts: tuple[PromptResult, ...]


@dataclass(frozen=True)
class ParityReport:
    """A whole run.

    Attributes:
        min_agreement: share of exact prompts whose tokens must be identical: 1.0 for fp32 embeddings on
            the wire, 0.99 for fp16; a gate may set another.
        gate: every limit and the measured value, encoder rows and agreement among them.
        against: the other side, where two were compared.
        sets: the bundle's other sets of graphs; answers are the first set's.
        wire: every form on the wire, of the first set's embeddings.
        skipped: what was not compared, and why.
    """

    bundle: str
    model: str
    precision: str
    backend: str
    wire_dtype: str
    encoder: tuple[EncoderRow, ...]
    prompts: tuple[PromptResult, ...]
    min_agreement: float
    tools: dict[str, str]
    gate: tuple[GateRow, ...] = ()
    against: AgainstReport | None = None
    sets: tuple[SetReport, ...] = ()
    wire: tuple[WireRow, ...] = ()
    skipped: Skipped = field(default_factory=dict)

    def with_against(self, against: AgainstReport) -> ParityReport:
        return replace(self, against=against)

    def with_others(
        self, sets: Sequence[SetReport], wire: Sequence[WireRow], skipped: Skipped, limits: Sequence[GateRow]
    ) -> ParityReport:
        """With the other sets and the wire forms, their limits, and what was not compared."""
        return replace(
            self,
            sets=tuple(sets),
            wire=tuple(wire),
            skipped=self.skipped | skipped,
            gate=(*self.gate, *limits),
        )

    @property
    def exact_prompts(self) -> tuple[PromptResult, ...]:
        return tuple(item for item in self.prompts if item.exact)

    @property
    def agreement(self) -> float:
        """Share of exact prompts with identical tokens."""
        exact = self.exact_prompts
        return sum(item.agrees for item in exact) / len(exact) if exact else 1.0

    @property
    def passed(self) -> bool:
        rows = [*self.encoder, *(row for item in self.sets for row in item.encoder)]
        return all(row.passed for row in rows) and self.agreement >= self.min_agreement and not self.failures

    @property
    def failures(self) -> tuple[GateRow, ...]:
        """Limits that were exceeded."""
        return tuple(row for row in self.gate if not row.passed)

    @property
    def max_kl(self) -> float:
        return max((value for item in self.exact_prompts for value in item.kl), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Everything, with the derived figures."""
        document = asdict(self)
        judged: list[tuple[list[dict[str, Any]], Sequence[EncoderRow | WireRow]]]
        judged = [(document["encoder"], self.encoder), (document["wire"], self.wire)]
        judged += [(one["encoder"], item.encoder) for one, item in zip(document["sets"], self.sets, strict=True)]
        for rows, items in judged:
            for row, item in zip(rows, items, strict=True):
                row["passed"] = item.passed
        for row, prompt in zip(document["prompts"], self.prompts, strict=True):
            row["agrees"] = prompt.agrees
        for row, limit in zip(document["gate"], self.gate, strict=True):
            row["passed"] = limit.passed
        exact = self.exact_prompts
        return {
            "passed": self.passed,
            "agreement": self.agreement,
            "exact_prompts": len(exact),
            "resized_prompts": len(self.prompts) - len(exact),
            "max_kl": self.max_kl,
            **document,
        }


def print_report(report: ParityReport) -> None:
    """Tables on stdout: encoder by graph and output, wire forms, prompts that differ, limits that were exceeded."""
    console = Console()
    _print_encoder(console, f"encoder: {report.backend} {report.precision} against PyTorch fp32", report.encoder)
    for item in report.sets:
        title = f"encoder: {report.backend} {item.precision} against PyTorch fp32, the worst output of each graph"
        _print_encoder(console, title, worst_outputs(item.encoder))
    _print_wire(console, report.wire)
    if report.against is not None:
        _print_encoder(console, f"the other side: {report.against.label} against PyTorch fp32", report.against.encoder)
    if report.prompts:
        _print_answers(console, report)
    else:
        console.print("end to end: not measured, because no prompts were asked (a dump holds no answers)")
    for what, reason in report.skipped.items():
        console.print(f"not compared: {what} ({reason})", markup=False, highlight=False, soft_wrap=True)
    # Answers before encoders: a set that is far off has a row for each output of each graph.
    failures = sorted(report.failures, key=lambda row: row.what.startswith(("encoder", "layer")))
    for row in failures[:SHOWN_FAILURES]:
        console.print(f"[red]failed[/] {row}", soft_wrap=True)
    if len(failures) > SHOWN_FAILURES:
        console.print(f"and {len(failures) - SHOWN_FAILURES} more, which --json and --report list")
    console.print("[bold green]parity holds[/]" if report.passed else "[bold red]parity is broken[/]")


def _print_encoder(console: Console, title: str, rows: Sequence[EncoderRow]) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("graph", "output", "cosine", "max abs", "relative L2", ""):
        table.add_column(name, justify="right" if name in ("cosine", "max abs", "relative L2") else "left")
    for row in rows:
        apart = row.distance
        figures = (f"{apart.cosine:.7f}", f"{apart.max_abs:.1e}", f"{apart.relative_l2:.1e}")
        table.add_row(row.label, row.output, *figures, row.excess or "ok")
    console.print(table)


def worst_outputs(rows: Sequence[EncoderRow]) -> list[EncoderRow]:
    """Of each graph the output that differs most; NaN differs more than any number."""
    worst: dict[str, EncoderRow] = {}
    for row in rows:
        one = worst.setdefault(row.label, row)
        worst[row.label] = max(
            one,
            row,
            key=lambda item: (item.distance.relative_l2 != item.distance.relative_l2, item.distance.relative_l2),
        )
    return list(worst.values())


def _print_wire(console: Console, rows: tuple[WireRow, ...]) -> None:
    """One line per form, worst over the outputs."""
    if not rows:
        return
    table = Table(title="wire forms: what the server computes with, beside the encoder's own", title_justify="left")
    for name in ("form", "cosine", "relative L2", "largest error / explained", ""):
        table.add_column(name, justify="left" if name in ("form", "") else "right")
    for form in dict.fromkeys(row.form for row in rows):
        own = [row for row in rows if row.form == form]
        apart = functools.reduce(Distance.worst, (row.distance for row in own))
        worst = max((row.steps for row in own), key=lambda value: (value != value, value))
        verdict = "ok" if all(row.passed for row in own) else "beyond its arithmetic"
        table.add_row(form, f"{apart.cosine:.7f}", f"{apart.relative_l2:.1e}", f"{worst:.2f}", verdict)
    console.print(table)


def _print_answers(console: Console, report: ParityReport) -> None:
    exact = report.exact_prompts
    console.print(
        f"end to end, {report.precision}, {report.wire_dtype} on the wire: {sum(item.agrees for item in exact)} of "
        f"{len(exact)} prompts give identical greedy tokens (required: {report.min_agreement:.0%}); "
        f"largest KL {report.max_kl:.1e} nats"
    )
    resized = [item for item in report.prompts if not item.exact]
    if resized:
        same = sum(item.agrees for item in resized)
        console.print(f"resized to a bucket: {same} of {len(resized)} prompts agree (the model saw another picture)")
    _print_alone(console, report.prompts)
    for item in report.prompts:
        if not item.agrees:
            mark = "" if item.exact else " (resized)"
            console.print(
                f"  {item.name}{mark}: differs at token {item.first_divergence}: unsplit {item.unsplit_text!r}, "
                f"split {item.split_text!r}",
                markup=False,
            )


def _print_alone(console: Console, prompts: tuple[PromptResult, ...]) -> None:
    """What transformers alone makes of the same files: the same input, another by choice, or a fault."""
    alone = summarize_alone(prompts)
    if alone is None:
        return
    console.print(
        f"transformers alone, from the original files: the same input on {alone.same} of {alone.compared} prompts"
    )
    if alone.by_choice:
        named = ", ".join(f"{choice} {count}" for choice, count in alone.choices.items())
        console.print(
            f"  by choice another on {alone.by_choice} ({named}); {alone.same_answers} of these answers are the same"
        )
    for name, reason in (*alone.faults, *alone.unread):
        console.print(f"  {name}: {reason}", markup=False, soft_wrap=True)
