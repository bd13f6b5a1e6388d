"""This project's engine as a candidate: called directly, behind HTTP, and with vLLM in a process of its own."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.tools.dev.bench.line_process import LineProcess
from qwen3vl_edge.tools.dev.load.engine.batch import Batch, ask
from qwen3vl_edge.tools.dev.load.figures import Run, Sample
from qwen3vl_edge.tools.dev.load.over_http import binary_body, closed_loop
from qwen3vl_edge.tools.server_process import running_server

ENGINE, HTTP, VLLM = "engine", "engine over HTTP", "vLLM"
VLLM_START_S = 600.0
# Run with `-c`: `-m` would need the package in vLLM's environment to be importable by file name.
VLLM_CODE = "from qwen3vl_edge.tools.dev.load.engine.vllm_worker import main; main()"


def open_engine(loaded: LoadedModel, rows: int) -> TransformersEngine:
    """An engine of so many rows, warm; nothing of a prompt is kept for another."""
    engine = TransformersEngine(loaded, ServerOptions(model="").limits, BatchOptions(max_queue=1000, max_batch=rows))
    engine.warm_up()
    return engine


class DirectEngine:
    """The transformers engine in this process."""

    name, prefills, in_process = ENGINE, True, True

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._engine: TransformersEngine | None = None

    def prepare(self, batch: Batch) -> None:
        self._engine = open_engine(self._loaded, batch.rows)

    def run(self, batch: Batch) -> Run:
        return ask(self._engine, batch.requests(self._loaded.shape.model_hash))

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


@dataclass(frozen=True)
class ServerSetup:
    """How a server of the same model is started.

    Attributes:
        most_rows: of its batch, the largest of the bench.
        threads: of the CPU; 0 for as many as it likes.
    """

    checkpoint: Path
    model_hash: str
    dtype: str
    device: str
    most_rows: int
    threads: int


class HttpEngine:
    """The same engine in a server of its own, asked over HTTP; started with the first batch."""

    name, prefills, in_process = HTTP, True, False

    def __init__(self, setup: ServerSetup) -> None:
        self._setup, self._stack, self._url = setup, ExitStack(), ""

    def prepare(self, batch: Batch) -> None:
        if not self._url:
            setup = self._setup
            server = running_server(
                threads=setup.threads or None,
                model=str(setup.checkpoint),
                dtype=setup.dtype,
                device_map=setup.device,
                engine="transformers",
                max_batch=setup.most_rows,
                max_queue=1000,
                prefix_cache_mib=0,
            )
            self._url = self._stack.enter_context(server).url

    def run(self, batch: Batch) -> Run:
        bodies = [binary_body(request) for request in batch.requests(self._setup.model_hash)]
        run = closed_loop(self._url, bodies, "binary", batch.rows)
        return Run(tuple(Sample(0.0, sample.tokens, sample.refused) for sample in run.samples), run.seconds)

    def close(self) -> None:
        """The server stays for the next batch."""

    def stop(self) -> None:
        """End the server."""
        self._stack.close()


class VllmEngine:
    """This project's vLLM engine, in a process that has vLLM; started with the first batch.

    Args:
        python: of vLLM's environment.
    """

    name, prefills, in_process = VLLM, True, False

    def __init__(self, setup: ServerSetup, python: str = sys.executable) -> None:
        self._setup, self._python = setup, python
        self._process: LineProcess | None = None

    def prepare(self, batch: Batch) -> None:
        if self._process is None:
            setup = self._setup
            self._process = LineProcess(VLLM, [self._python, "-c", VLLM_CODE], quiet=True)
            start = {"dtype": setup.dtype, "device": setup.device, "max_batch": setup.most_rows}
            self._process.send({"model": str(setup.checkpoint), **start})
            self._process.receive(VLLM_START_S)

    def run(self, batch: Batch) -> Run:
        assert self._process is not None
        reply: dict[str, Any] = self._process.request([batch.rows, batch.prompt_tokens, batch.new_tokens])
        return Run(tuple(Sample(0.0, tuple(times)) for times in reply["times"]), reply["seconds"])

    def close(self) -> None:
        """The process stays for the next batch."""

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
