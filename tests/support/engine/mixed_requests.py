"""Requests of every kind that an engine decodes together, and an engine asked by them: some leave, others join."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from qwen3vl_edge.contract.errors import ContractError
from qwen3vl_edge.contract.wire.request import GenerateRequest, Sampling
from qwen3vl_edge.server.engines.protocol import Generation, Token
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel, load_language_model
from qwen3vl_edge.server.options import ServerOptions
from tests.support.server_checkpoint import CASE_NAMES, make_case, oracle

LENGTHS = (1, 2, 5, 9, 17, 30)
PATIENCE_S = 120.0
PREFIX_BYTES = 2**20  # of the tiny model some hundred tokens: full at once, so that evictions are part of it


@dataclass(frozen=True)
class Mixed:
    """A request, and when its client leaves.

    Attributes:
        leaves_after: tokens; None for one that waits for its whole answer.
    """

    request: GenerateRequest
    leaves_after: int | None = None


def mixed_requests(count: int, seed: int = 0) -> list[Mixed]:
    """Text, pictures, pairs, clips and turns; a third sampled with seeds; some cancelled, some another's next turn."""
    rng = random.Random(seed)
    found: list[Mixed] = []
    for index in range(count):
        request = make_case(CASE_NAMES[index % len(CASE_NAMES)]).request
        if index % 4 == 3:  # another turn of an earlier chat, whose keys and values may still be held
            more = np.array([rng.randrange(10, 250) for _ in range(rng.randint(3, 20))], dtype=np.int64)
            request = replace(request, input_ids=np.concatenate([request.input_ids, more]))
        sampling = Sampling(
            max_new_tokens=rng.choice(LENGTHS),
            do_sample=index % 3 == 0,
            temperature=1.3,
            top_p=0.95,
            top_k=40,
            seed=index,
            repetition_penalty=1.2 if index % 5 == 0 else 1.0,
        )
        leaves = rng.randint(1, 8) if index % 11 == 10 else None
        found.append(Mixed(replace(request, sampling=sampling, request_id=str(index)), leaves))
    return found


def load_tiny(device: str, dtype: str) -> LoadedModel:
    """The tiny checkpoint's language model."""
    return load_language_model(oracle().checkpoint, ServerOptions(model="", device_map=device, dtype=dtype))


@contextmanager
def running_engine(loaded: LoadedModel, **options: Any) -> Iterator[TransformersEngine]:
    """An engine with a queue for all that a test has; `capture` is left out where the engine has no such option."""
    known = {item.name for item in fields(BatchOptions)}
    values = {"max_queue": 1000, "prefix_bytes": PREFIX_BYTES, **options}
    given = {name: value for name, value in values.items() if name in known or name != "capture"}
    engine = TransformersEngine(loaded, options=BatchOptions(**given))
    try:
        yield engine
    finally:
        engine.close()


def answers_of(engine: TransformersEngine, requests: Sequence[Mixed]) -> list[tuple[int, ...] | ContractError]:
    """All submitted at once: ids, of one that left as many as it waited for; or the error that a client gets.

    Raises:
        Exception: an answer failed with what no client may see.
    """
    generations = [_submit(engine, item) for item in requests]
    found: list[tuple[int, ...] | ContractError] = []
    for item, generation in zip(requests, generations, strict=True):
        try:
            ids = generation.future.result(PATIENCE_S).generated_ids
        except ContractError as error:
            found.append(error)
        else:
            found.append(ids[: item.leaves_after])
    return found


def share_equal(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Of two lists of answers."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _submit(engine: TransformersEngine, item: Mixed) -> Generation:
    """Submit; a client that leaves cancels from another thread, as the HTTP side does."""
    if item.leaves_after is None:
        return engine.submit(engine.prepare(item.request))
    seen: list[Token] = []
    reached = threading.Event()

    def on_token(token: Token) -> None:
        seen.append(token)
        if len(seen) == item.leaves_after:
            reached.set()

    generation = engine.submit(engine.prepare(item.request), on_token)
    generation.future.add_done_callback(lambda _: reached.set())

    def leave() -> None:
        reached.wait(PATIENCE_S)
        generation.cancel()

    threading.Thread(target=leave, daemon=True).start()
    return generation
