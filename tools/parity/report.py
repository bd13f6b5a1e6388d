"""The report of a parity run, as JSON for scripts and as tables for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen3vl_edge.contract.bundle.distance import Distance
from qwen3vl_edge.tools.parity.encoder import EncoderRow
from qwen3vl_edge.tools.parity.end_to_end import PromptResult
from qwen3vl_edge.tools.parity.gate import GateRow


@dataclass(frozen=True)
class Between:
    """The candidate's output compared with the other side's, worst over the pictures of a bucket."""

    bucket: str
    output: str
    distance: Distance


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

    def with_against(self, against: AgainstReport) -> ParityReport:
        return replace(self, against=against)

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
        within = all(row.passed for row in self.encoder) and self.agreement >= self.min_agreement
        return within and not self.failures

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
        for row, item in zip(document["encoder"], self.encoder, strict=True):
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
    """Tables on stdout: encoder by bucket and output, the prompts that differ, the limits that were exceeded."""
    console = Console()
    _print_encoder(console, f"encoder: {report.backend} {report.precision} against PyTorch fp32", report.encoder)
    if report.against is not None:
        _print_encoder(console, f"the other side: {report.against.label} against PyTorch fp32", report.against.encoder)
    if report.prompts:
        _print_answers(console, report)
    else:
        console.print("end to end: not measured, because no prompts were asked (a dump holds no answers)")
    for row in report.failures:
        console.print(f"[red]failed[/] {row}", soft_wrap=True)
    console.print("[bold green]parity holds[/]" if report.passed else "[bold red]parity is broken[/]")


def _print_encoder(console: Console, title: str, rows: tuple[EncoderRow, ...]) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("bucket", "graph", "output", "cosine", "max abs", "relative L2", ""):
        table.add_column(name, justify="right" if name in ("cosine", "max abs", "relative L2") else "left")
    for row in rows:
        apart = row.distance
        figures = (f"{apart.cosine:.7f}", f"{apart.max_abs:.1e}", f"{apart.relative_l2:.1e}")
        table.add_row(row.bucket, row.graph, row.output, *figures, row.excess or "ok")
    console.print(table)


def _print_answers(console: Console, report: ParityReport) -> None:
    exact = report.exact_prompts
    console.print(
        f"end to end, {report.wire_dtype} on the wire: {sum(item.agrees for item in exact)} of {len(exact)} prompts "
        f"give identical greedy tokens (required: {report.min_agreement:.0%}); largest KL {report.max_kl:.1e} nats"
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
    compared = [(item, item.alone) for item in prompts if item.alone is not None]
    by_choice = [(item, alone) for item, alone in compared if alone.choices and alone.fault is None]
    faults = [(item, alone.fault) for item, alone in compared if alone.fault is not None]
    unread = [(item, alone.unread) for item, alone in compared if alone.unread is not None]
    same = len(compared) - len(by_choice) - len(faults) - len(unread)
    console.print(f"transformers alone, from the original files: the same input on {same} of {len(compared)} prompts")
    if by_choice:
        counts = Counter(choice for _, alone in by_choice for choice in alone.choices)
        named = ", ".join(f"{choice} {count}" for choice, count in counts.items())
        answers = sum(alone.ids == item.unsplit_ids for item, alone in by_choice)
        console.print(f"  by choice another on {len(by_choice)} ({named}); {answers} of these answers are the same")
    for item, reason in (*faults, *unread):
        console.print(f"  {item.name}: {reason}", markup=False, soft_wrap=True)
