"""The step `server`: this project's engine, transformers' `generate`, and a decode step captured by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel, load_language_model
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.tools.dev.bench.make_bundle import REFERENCE
from qwen3vl_edge.tools.dev.gpu.context import Context, Report, reason
from qwen3vl_edge.tools.dev.gpu.decode_step import DecodeStep, captured
from qwen3vl_edge.tools.dev.gpu.timing import device_seconds, repeat, wall_seconds
from qwen3vl_edge.tools.dev.load.figures import summarise
from qwen3vl_edge.tools.dev.load.in_process import run_engine
from qwen3vl_edge.tools.dev.load.mix import Mix
from qwen3vl_edge.tools.dev.load.model import make_checkpoint
from qwen3vl_edge.tools.parity.greedy import greedy_config

HEAD_WIDTH = {False: 128, True: 64}  # by dry


def bench_server(context: Context, report: Report) -> None:
    """A row for each candidate and batch size, and the floor: every weight read once a step."""
    loaded = _load(context)
    weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
    peaks = next(iter(context.rows("environment", "peaks")), None)
    if peaks is not None:
        seconds = weights / peaks["bytes"]
        report("server", {"candidate": "floor", "batch": 1, "step_seconds": seconds, "tokens_per_second": 1 / seconds})
    benches: dict[str, Callable[[LoadedModel, int, Context], dict[str, Any]]] = {
        "captured step by hand": _by_hand,
        "transformers generate": _generate,
        "engine": _engine,
    }
    for name, measure in benches.items():
        for batch in context.sizes.batches:
            row = {"candidate": name, "batch": batch, "dtype": str(loaded.dtype).removeprefix("torch.")}
            try:
                report("server", {**row, **measure(loaded, batch, context)})
            except Exception as error:  # out of memory at one batch size is no reason to leave the others out
                report("server", {**row, "failed": reason(error)})


def _load(context: Context) -> LoadedModel:
    sizes, dtype = context.sizes, "float32" if context.dry else "bfloat16"
    folder = context.work / "language-model"
    make_checkpoint(
        folder, REFERENCE, sizes.layers, sizes.width, 2, 128, HEAD_WIDTH[context.dry], dtype, context.device
    )
    options = ServerOptions(model=str(folder), device_map=context.device, dtype=dtype)
    return load_language_model(open_checkpoint(str(folder)), options)


def _engine(loaded: LoadedModel, batch: int, context: Context) -> dict[str, Any]:
    options = ServerOptions(model=loaded.name)
    with closing(TransformersEngine(loaded, options.limits, BatchOptions(max_queue=1000, max_batch=batch))) as engine:
        engine.warm_up()
        run_engine(engine, Mix(2, 4), 1)
        run = run_engine(engine, Mix(max(2, batch), context.sizes.new_tokens), batch)
    found = summarise(run)
    return {name: found[name] for name in ("tokens_per_second", "first_token_s", "between_tokens_s")}


def _generate(loaded: LoadedModel, batch: int, context: Context) -> dict[str, Any]:
    """From text alone; as many tokens as asked for, for random weights end an answer at random."""
    sizes = context.sizes
    ids = torch.arange(sizes.prompt_tokens, device=loaded.device)[None].repeat(batch, 1) % 200 + 5

    def generate(count: int) -> Any:
        config = greedy_config(loaded.end_ids, count)
        config.min_new_tokens = count
        with torch.inference_mode():
            return loaded.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
            ).cpu()

    generate(2)
    seconds = wall_seconds(lambda: generate(sizes.new_tokens))
    return {"tokens_per_second": batch * sizes.new_tokens / seconds}


def _by_hand(loaded: LoadedModel, batch: int, context: Context) -> dict[str, Any]:
    """What the same model does when the CPU starts one graph a step: the time that a step has to take at most."""
    step = DecodeStep(loaded.model, batch, context.sizes.prompt_tokens, loaded.device)
    with torch.inference_mode():
        eager = statistics.median(repeat(lambda: device_seconds(step.run, context.device), context.sizes))
        replay = captured(step)
        graph = statistics.median(repeat(lambda: device_seconds(replay, context.device), context.sizes))
    return {"step_seconds": graph, "eager_step_seconds": eager, "tokens_per_second": batch / graph}
