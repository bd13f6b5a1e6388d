"""What the server is held against: the same engine without HTTP, and the unsplit model, in processes of their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

from qwen3vl_edge.tools.dev.load.figures import Run, Sample
from qwen3vl_edge.tools.dev.load.mix import Mix
from qwen3vl_edge.tools.parity.greedy import forget_defaults, greedy_config

_held: dict[str, Any] = {}  # of the worker process


@dataclass(frozen=True)
class Setup:
    """The model and how its requests share it."""

    checkpoint: Path
    max_batch: int
    threads: int


class Worker:
    """A process that holds a model; `run` measures in it.

    Args:
        prepare: makes the model, in that process.
        measure: runs a mix on it.
    """

    def __init__(self, setup: Setup, prepare: Callable[[Setup], None], measure: Callable[[Mix, int], Run]) -> None:
        self._stack = ExitStack()
        self._pool = self._stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), prepare, (setup,)))
        self._measure = measure

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, mix: Mix, devices: int) -> Run:
        """One closed-loop run."""
        return self._pool.submit(self._measure, mix, devices).result()


def engine_without_http(setup: Setup) -> Worker:
    """The transformers engine, called directly by as many threads as there are devices."""
    return Worker(setup, _open_engine, _run_engine)


def unsplit_model(setup: Setup) -> Worker:
    """Upstream's model from pixels, one request after another: it has no queue of its own."""
    return Worker(setup, _open_unsplit, _run_unsplit)


def text_ids(tokenizer: Any) -> range:
    """Ids of ordinary tokens: a byte-level vocabulary begins with its bytes."""
    return range(min(256, len(tokenizer)))


def _open_engine(setup: Setup) -> None:
    import torch

    from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
    from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
    from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
    from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
    from qwen3vl_edge.server.options import ServerOptions

    torch.set_num_threads(setup.threads)
    options = ServerOptions(model=str(setup.checkpoint), device_map="cpu", dtype="float32")
    loaded = load_language_model(open_checkpoint(str(setup.checkpoint)), options)
    batch = BatchOptions(max_queue=100_000, max_batch=setup.max_batch)
    _held["engine"] = TransformersEngine(loaded, options.limits, batch)
    _held["engine"].warm_up()


def _run_engine(mix: Mix, devices: int) -> Run:
    return run_engine(_held["engine"], mix, devices)


def run_engine(engine: Any, mix: Mix, devices: int) -> Run:
    """One closed-loop run on a `TransformersEngine`, asked by as many threads as there are devices."""
    from concurrent.futures import ThreadPoolExecutor

    from qwen3vl_edge.tools.dev.load.mix import make_requests

    requests = make_requests(mix, engine.loaded.shape, text_ids(engine.loaded.tokenizer))
    began = time.perf_counter()

    def ask(request: Any) -> Sample:
        due, tokens = time.perf_counter() - began, []
        engine.generate(request, lambda _: tokens.append(time.perf_counter() - began))
        return Sample(due, tuple(tokens))

    with ThreadPoolExecutor(devices) as pool:
        samples = tuple(pool.map(ask, requests))
    return Run(samples, time.perf_counter() - began)


def _open_unsplit(setup: Setup) -> None:
    import torch
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
    from qwen3vl_edge.server.engines.checkpoint_config import model_shape

    torch.set_num_threads(setup.threads)
    model = Qwen3VLForConditionalGeneration.from_pretrained(setup.checkpoint, dtype=torch.float32)
    ends = model.generation_config.eos_token_id
    _held["ends"] = ends if isinstance(ends, list) else [ends]
    _held["model"] = forget_defaults(model.eval())
    _held["shape"] = model_shape(open_checkpoint(str(setup.checkpoint)))
    _held["tokenizer"] = AutoTokenizer.from_pretrained(setup.checkpoint)


def _run_unsplit(mix: Mix, devices: int) -> Run:
    import torch
    from transformers.generation.streamers import BaseStreamer

    from qwen3vl_edge.tools.dev.load.mix import make_requests

    model, shape = _held["model"], _held["shape"]
    vision = model.config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    requests = make_requests(mix, shape, text_ids(_held["tokenizer"]))
    began = time.perf_counter()
    samples = []

    class Clock(BaseStreamer):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: torch.Tensor) -> None:
            self.times.append(time.perf_counter() - began)

        def end(self) -> None:
            """Nothing to do."""

    for request in requests:
        due, clock = time.perf_counter() - began, Clock()
        ids = torch.from_numpy(request.input_ids)[None]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if request.media:
            inputs["pixel_values"] = torch.randn(sum(item.grid.patches for item in request.media), width)
            inputs["image_grid_thw"] = torch.tensor([item.grid.as_list() for item in request.media])
            inputs["mm_token_type_ids"] = (ids == shape.image_token_id).int()
        config = greedy_config(_held["ends"], mix.new_tokens)
        with torch.inference_mode():
            model.generate(**inputs, generation_config=config, streamer=clock)
        samples.append(Sample(due, tuple(clock.times[1:])))  # the first call hands over the prompt
    return Run(tuple(samples), time.perf_counter() - began)
