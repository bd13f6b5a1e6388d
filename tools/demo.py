"""The whole path on the reference checkpoint, with the unsplit model's answer beside each of the split's."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
from rich.console import Console
from rich.table import Table

from contract.checkpoint import open_checkpoint
from contract.errors import InputError, ServerUnavailableError
from contract.request import Sampling
from edge_runtime.ask import Answer, ask
from edge_runtime.edge import open_edge
from tools.parity.end_to_end import Unsplit
from tools.parity.prompts import read_prompts

BUCKETS = "128x128,128x160,160x128,160x160"
VIDEO_BUCKETS = "8x96x96,8x96x128"
START_SECONDS = 120.0


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
    with running_server(model) as url, open_edge(work) as edge:
        console.print(f"server at {url}, its own process, language model only; the device holds the encoder only\n")
        for name, messages in prompts:
            answer = ask(edge, url, messages, Sampling(max_new_tokens=32))
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
    from export.bundle import export_bundle

    with console.status("exporting the encoder"):
        started = time.perf_counter()
        manifest = export_bundle(str(model), work, image_buckets=BUCKETS, video_buckets=VIDEO_BUCKETS)
    graphs = manifest.precisions[0].graphs
    worst = min(row.cosine for graph in graphs for row in graph.parity)
    console.print(
        f"exported {len(graphs)} graphs in {time.perf_counter() - started:.1f} s, "
        f"worst cosine to PyTorch {worst:.7f}: {work}"
    )


@contextmanager
def running_server(model: Path) -> Iterator[str]:
    """A server of `model` in a process of its own, on a free port; yields its URL once it is ready.

    Raises:
        ServerUnavailableError: it ended, or is not ready in time.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tools.cli", "server", "--model", str(model), "--port", str(port)]
    with tempfile.TemporaryFile() as log:  # a pipe that nobody reads would fill and stop the server
        process = subprocess.Popen([*command, "--dtype", "float32"], stderr=log, stdout=subprocess.DEVNULL)
        try:
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=30)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            log.seek(0)
            words = log.read().decode(errors="replace").strip()
            raise ServerUnavailableError(f"the server ended: {words[-300:]}")
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise ServerUnavailableError(f"the server was not ready within {START_SECONDS:.0f} s")


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
