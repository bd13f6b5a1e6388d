"""The whole path on the reference checkpoint, with the unsplit model's answer beside each of the split's."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.ask import Answer, ask
from qwen3vl_edge.edge_runtime.edge import open_edge
from qwen3vl_edge.tools.parity.end_to_end import Unsplit
from qwen3vl_edge.tools.parity.prompts import read_prompts
from qwen3vl_edge.tools.server_process import running_server

BUCKETS = "128x128,128x160,160x128,160x160"
VIDEO_BUCKETS = "8x96x96,8x96x128"


def run(work: Path, model: Path, samples: Path) -> None:
    """Export, serve, ask, compare; exits with code 1 if any answer differs.

    Raises:
        ContractError: a step that cannot be done, named.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 150)
    started = time.perf_counter()
    _export(model, work, console)
    prompts = read_prompts(samples / "questions.jsonl")
    unsplit = Unsplit(open_checkpoint(str(model)))
    rows = []
    with running_server(model=str(model), dtype="float32") as server, open_edge(work) as edge:
        console.print(
            f"server at {server.url}, its own process, language model only; the device holds the encoder only\n"
        )
        for name, messages in prompts:
            answer = ask(edge, server.url, messages, Sampling(max_new_tokens=32))
            inputs = unsplit.inputs(messages, edge.policy)
            output = unsplit.model.generate(**inputs, max_new_tokens=32, do_sample=False)
            reference = unsplit.processor.hf.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            rows.append((name, messages, answer, reference))
    console.print(_table(rows))
    agree = sum(answer.text == reference for _, _, answer, reference in rows)
    console.print(
        f"{agree} of {len(rows)} answers are the unsplit model's; {time.perf_counter() - started:.0f} s in all"
    )
    if agree != len(rows):
        raise SystemExit(1)


def _export(model: Path, work: Path, console: Console) -> None:
    from qwen3vl_edge.export.bundle import export_bundle

    with console.status("exporting the encoder"):
        started = time.perf_counter()
        manifest = export_bundle(str(model), work, image_buckets=BUCKETS, video_buckets=VIDEO_BUCKETS)
    graphs = manifest.precisions[0].graphs
    worst = min(row.cosine for graph in graphs for row in graph.parity)
    console.print(
        f"exported {len(graphs)} graphs in {time.perf_counter() - started:.1f} s, "
        f"worst cosine to PyTorch {worst:.7f}: {work}"
    )


def _table(rows: list[tuple[str, list[dict[str, Any]], Answer, str]]) -> Table:
    table = Table()
    for name in ("sample", "question", "split answer", "unsplit answer", "same", "encode", "first token", "sent"):
        table.add_column(name, justify="right" if name in ("encode", "first token", "sent") else "left")
    for name, messages, answer, reference in rows:
        table.add_row(
            name,
            _question(messages),
            answer.text,
            reference,
            "yes" if answer.text == reference else "NO",
            f"{answer.seconds['encode'] * 1000:.0f} ms",
            f"{answer.seconds['first_token'] * 1000:.0f} ms",
            f"{answer.sent_bytes / 1000:.0f} kB",
        )
    return table


def _question(messages: list[dict[str, Any]]) -> str:
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    text = [part["text"] for part in content if "text" in part]
    if not text:
        raise InputError("a sample asks nothing", field="messages")
    return str(text[-1])
