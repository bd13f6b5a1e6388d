"""The section of the engine bench (`tools/dev/load/engine`): candidates by batch, and long prompts that arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qwen3vl_edge.tools.dev.bench.report.tables import Row, environment_line, figure, noted, table

MIB = 2**20
TEXT = (
    "Tokens per second of whole answers, prompts included, and of decode alone; the ratios are the engine's figure "
    "over the row's, medians of the rounds (and of the best rounds). The floor reads every weight, key and value once "
    "a step.\n\n"
)


def engine(document: Row) -> str:
    """A document that `python -m qwen3vl_edge.tools.dev.load.engine` wrote."""
    size = f"{document['layers']} layers, {document['width']} wide, {document['dtype']}, {document['device']}"
    batch = f"prompts of {document['prompt_tokens']} tokens, answers of {document['new_tokens']}"
    text = f"## The server's engine, {size}\n\n{batch}, {document['threads']} threads, {document['rounds']} rounds. "
    return text + engine_table(document["server"]) + noted(document) + environment_line(document)


def engine_table(rows: Sequence[Row]) -> str:
    """Rows of the table `server`; those of earlier runs have fewer figures."""
    columns: dict[str, Callable[[Row], str]] = {
        "language model": lambda row: str(row["candidate"]),
        "batch": lambda row: str(row["batch"]),
        "tokens/s": lambda row: (
            f"{row['tokens_per_second']:,.1f}"
            if "tokens_per_second" in row
            else row.get("failed") or f"not run: {row['skipped']}"
        ),
        "decode tokens/s": figure("decode_tokens_per_second", ",.1f"),
        "ms a step": figure("step_seconds", ",.2f", 1e3),
        "the same step, eager": figure("eager_step_seconds", ",.2f", 1e3),  # of earlier runs
        "first token ms, p50 / p95": _times("first_token_s", "p50", "p95"),
        "between tokens ms, p50 / p95 / p99": _times("between_tokens_s", "p50", "p95", "p99"),
        "engine over this, whole": _ratio("whole"),
        "engine over this, decode": _ratio("decode"),
        "device MiB": figure("device_peak_bytes", ",.0f", 1 / MIB),
        "process MiB": figure("process_peak_bytes", ",.0f", 1 / MIB),
    }
    used = {name: cell for name, cell in columns.items() if any(cell(row) for row in rows)}
    return TEXT + table(used, rows, words=1) + "".join(map(_arrivals, rows))


def _times(name: str, *percents: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        values: dict[str, Any] = row.get(name) or {}
        return " / ".join(f"{values[percent] * 1e3:,.1f}" for percent in percents) if values else ""

    return cell


def _ratio(name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = row.get("engine_over_this", {}).get(name)
        return f"{found['median']:.2f} ({found['best']:.2f})" if found else ""

    return cell


def _arrivals(row: Row) -> str:
    if "long_prompts" not in row:
        return ""
    ratios = (
        f"{row['p99_over_median']:.2f} times the median, {row['p99_over_quiet_median']:.2f} times that without them"
    )
    return (
        f"\n{row['long_prompts']} prompts of {row['long_prompt_tokens']:,} tokens arriving while {row['answers']} "
        f"answers run: between tokens p99 {ratios}; at most {row['between_tokens_s']['max'] * 1e3:,.0f} ms.\n"
    )
