"""The steps `server` and `generate-static`: the engine bench (`tools/dev/load/engine`) on the server's own model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel, load_language_model
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.tools.dev.bench.make_bundle import REFERENCE
from qwen3vl_edge.tools.dev.gpu.context import Context, Report
from qwen3vl_edge.tools.dev.load.engine.arrivals import Arrivals
from qwen3vl_edge.tools.dev.load.engine.bench import CAPTURED, EAGER, Plan, bench_engine
from qwen3vl_edge.tools.dev.load.engine.engines import ENGINE, VLLM
from qwen3vl_edge.tools.dev.load.engine.generate import COMPILED, DYNAMIC, STATIC
from qwen3vl_edge.tools.dev.load.model import make_checkpoint

HEAD_WIDTH = {False: 128, True: 64}  # by dry
COMPILED_BATCH = 8  # compiling takes 40 s a size


def bench_server(context: Context, report: Report) -> None:
    """A row for each candidate and batch size, the floor, and long prompts that arrive."""
    loaded, folder = _load(context)
    sizes = context.sizes
    arrivals = Arrivals(sizes.arrivals_answers, sizes.arrivals_prompts, sizes.arrivals_tokens)
    plan = replace(_plan(context), candidates=(ENGINE, CAPTURED, EAGER, DYNAMIC, STATIC, VLLM), arrivals=arrivals)
    bench_engine(loaded, folder, plan, report)


def bench_compiled_generate(context: Context, report: Report) -> None:
    """`generate` with the step that transformers compiles, beside the engine; last, for it takes long to start."""
    loaded, folder = _load(context)
    bench_engine(
        loaded, folder, replace(_plan(context), candidates=(ENGINE, COMPILED), batches=(COMPILED_BATCH,)), report
    )


def _plan(context: Context) -> Plan:
    sizes = context.sizes
    peaks = next(iter(context.rows("environment", "peaks")), None)
    return Plan(
        batches=sizes.batches,
        prompt_tokens=sizes.prompt_tokens,
        new_tokens=sizes.new_tokens,
        rounds=sizes.rounds,
        bytes_per_second=peaks["bytes"] if peaks is not None else None,
    )


def _load(context: Context) -> tuple[LoadedModel, Path]:
    """The model and its folder, made by the first step that wants it."""
    sizes, dtype = context.sizes, "float32" if context.dry else "bfloat16"
    folder = context.work / "language-model"
    if not folder.is_dir():
        head, half_made = HEAD_WIDTH[context.dry], context.work / "language-model.part"
        make_checkpoint(half_made, REFERENCE, sizes.layers, sizes.width, 2, 128, head, dtype, context.device)
        half_made.rename(folder)
    options = ServerOptions(model=str(folder), device_map=context.device, dtype=dtype)
    return load_language_model(open_checkpoint(str(folder)), options), folder
