"""What every candidate of the engine bench generates: prompts of one length, answers of one length, all at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.tools.dev.load.figures import Run, Sample

TEXT_IDS = 200  # a byte-level vocabulary begins with its bytes
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Batch:
    """Prompts that arrive together; the same for every candidate.

    Attributes:
        rows: prompts.
        prompt_tokens, new_tokens: of each.
    """

    rows: int
    prompt_tokens: int
    new_tokens: int

    def ids(self) -> NDArray[np.int64]:
        """[rows, prompt_tokens]; each row another text, so that no prefix cache serves two."""
        columns = np.arange(self.prompt_tokens, dtype=np.int64)
        return (columns[None] * 3 + 7 * np.arange(self.rows)[:, None]) % TEXT_IDS + 5

    def requests(self, model_hash: str) -> list[GenerateRequest]:
        """The same as greedy requests."""
        sampling = Sampling(max_new_tokens=self.new_tokens)
        return [
            GenerateRequest(model_hash, ids, sampling=sampling, stream=True, request_id=f"row-{index}")
            for index, ids in enumerate(self.ids())
        ]


class Candidate(Protocol):
    """Something that generates a batch.

    Attributes:
        name: for tables.
        prefills: its run begins with the prompts, so that it has a time to first token.
        in_process: it runs in this process, whose memory is measured.
    """

    name: str
    prefills: bool
    in_process: bool

    def prepare(self, batch: Batch) -> None:
        """Get ready for batches like this one; what the first run still makes is not timed either."""
        ...

    def run(self, batch: Batch) -> Run:
        """Generate it, with the time of each token of each row."""
        ...

    def close(self) -> None:
        """Free what `prepare` made."""
        ...


def ask(engine: Any, requests: Sequence[GenerateRequest]) -> Run:
    """Submit all of them to an `Engine` at once.

    Raises:
        ContractError: an answer failed.
    """
    times: list[list[float]] = [[] for _ in requests]
    prepared = [engine.prepare(request) for request in requests]
    began = time.perf_counter()
    generations = [
        engine.submit(request, lambda _, own=own: own.append(time.perf_counter() - began))
        for request, own in zip(prepared, times, strict=True)
    ]
    for generation in generations:
        generation.future.result(PATIENCE_S)
    return Run(tuple(Sample(0.0, tuple(own)) for own in times), time.perf_counter() - began)


@dataclass
class Answer:
    """A request under way, with the times of its tokens; for those that come while others run.

    Attributes:
        times: on the clock of `time.perf_counter`.
        started: set with the first token.
    """

    times: list[float]
    started: threading.Event
    generation: Any = None

    @classmethod
    def submit(cls, engine: Any, request: GenerateRequest) -> Answer:
        answer = cls([], threading.Event())

        def on_token(_: object) -> None:
            answer.times.append(time.perf_counter())
            answer.started.set()

        answer.generation = engine.submit(engine.prepare(request), on_token)
        return answer
