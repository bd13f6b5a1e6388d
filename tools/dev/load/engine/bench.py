"""The engine bench as a whole: the floor, every candidate on every batch, and long prompts that arrive."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3vl_edge.server.engines.choice import find_vllm
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.tools.dev.load.engine.arrivals import Arrivals, measure_arrivals
from qwen3vl_edge.tools.dev.load.engine.batch import Batch, Candidate
from qwen3vl_edge.tools.dev.load.engine.decode_step import StepByHand
from qwen3vl_edge.tools.dev.load.engine.engines import (
    ENGINE,
    HTTP,
    VLLM,
    DirectEngine,
    HttpEngine,
    ServerSetup,
    VllmEngine,
    open_engine,
)
from qwen3vl_edge.tools.dev.load.engine.generate import COMPILED, DYNAMIC, STATIC, Generate
from qwen3vl_edge.tools.dev.load.engine.memory import peak_memory
from qwen3vl_edge.tools.dev.load.engine.rounds import bench_batch

FLOOR, CAPTURED, EAGER, ARRIVALS = "floor", "captured step by hand", "eager step by hand", "engine, long prompts arrive"
CANDIDATES = (ENGINE, DYNAMIC, STATIC, COMPILED, CAPTURED, EAGER, HTTP, VLLM)
GPU_ONLY = {
    CAPTURED: "CUDA graphs need a GPU: the eager step stands for it here",
    COMPILED: "transformers compiles the step on a GPU alone",
}

Report = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        candidates: names of CANDIDATES; `engine` is what the others are held against.
        batches: numbers of prompts that arrive together.
        prompt_tokens, new_tokens: of each.
        rounds: of each batch.
        arrivals: None to leave them out.
        bytes_per_second: that the device moves, measured; None for no floor.
        threads: of a server's process on the CPU; 0 for as many as it likes.
        vllm_python: of an environment with vLLM; empty for this one.
    """

    candidates: Sequence[str] = CANDIDATES
    batches: Sequence[int] = (1, 8, 32)
    prompt_tokens: int = 200
    new_tokens: int = 48
    rounds: int = 3
    arrivals: Arrivals | None = None
    bytes_per_second: float | None = None
    threads: int = 0
    vllm_python: str = ""


def bench_engine(loaded: LoadedModel, checkpoint: Path, plan: Plan, report: Report) -> None:
    """Report rows of the table `server`, as they come.

    Args:
        loaded: the model that the engine, `generate` and the step by hand share.
        checkpoint: its folder, for the candidates with processes of their own.
    """
    dtype = str(loaded.dtype).removeprefix("torch.")

    def row(values: Mapping[str, Any]) -> None:
        report("server", {**values, "dtype": dtype})

    setup = ServerSetup(checkpoint, loaded.shape.model_hash, dtype, str(loaded.device), max(plan.batches), plan.threads)
    with ExitStack() as stack:
        candidates = _candidates(loaded, setup, plan, row, stack)
        for rows in plan.batches:
            batch = Batch(rows, plan.prompt_tokens, plan.new_tokens)
            if plan.bytes_per_second:
                row(_floor(loaded, batch, plan.bytes_per_second))
            bench_batch(candidates, batch, plan.rounds, loaded.device, row)
    if plan.arrivals is not None:
        row({"candidate": ARRIVALS, "batch": plan.arrivals.answers, **_arrivals(loaded, plan, plan.arrivals)})


def _candidates(
    loaded: LoadedModel, setup: ServerSetup, plan: Plan, row: Callable[[Mapping[str, Any]], None], stack: ExitStack
) -> list[Candidate]:
    """Those that run here; a row says why another does not."""
    found: list[Candidate] = []
    for name in plan.candidates:
        if reason := _absent(name, loaded, plan):
            row({"candidate": name, "batch": max(plan.batches), "skipped": reason})
        elif name == ENGINE:
            found.append(DirectEngine(loaded))
        elif name in (CAPTURED, EAGER):
            found.append(StepByHand(loaded.model, loaded.device, capture=name == CAPTURED))
        elif name in (HTTP, VLLM):
            served = HttpEngine(setup) if name == HTTP else VllmEngine(setup, plan.vllm_python or sys.executable)
            stack.callback(served.stop)
            found.append(served)
        else:
            found.append(Generate(name, loaded))
    return found


def _absent(name: str, loaded: LoadedModel, plan: Plan) -> str:
    if name == VLLM and not plan.vllm_python and find_vllm() is None:
        return "vLLM is not installed in this environment"
    return GPU_ONLY.get(name, "") if loaded.device.type == "cpu" else ""


def _floor(loaded: LoadedModel, batch: Batch, bytes_per_second: float) -> dict[str, Any]:
    """Every weight read once a step, and every key, value and state of the rows in the middle of their answers."""
    weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
    columns = batch.prompt_tokens + batch.new_tokens // 2
    kept = columns * loaded.kv_bytes_per_token + 2 * loaded.state_bytes  # states are read and written
    seconds = (weights + batch.rows * kept) / bytes_per_second
    rate = round(batch.rows / seconds, 2)
    return {
        "candidate": FLOOR,
        "batch": batch.rows,
        "step_seconds": seconds,
        "tokens_per_second": rate,
        "decode_tokens_per_second": rate,
    }


def _arrivals(loaded: LoadedModel, plan: Plan, arrivals: Arrivals) -> dict[str, Any]:
    engine = open_engine(loaded, arrivals.answers + arrivals.prompts)
    batch, memory = Batch(arrivals.answers, plan.prompt_tokens, plan.new_tokens), dict[str, int]()
    most_tokens = min(engine.limits.max_new_tokens, loaded.max_positions - plan.prompt_tokens)
    try:
        with peak_memory(loaded.device, memory):
            return {**measure_arrivals(engine, arrivals, batch, most_tokens), **memory}
    except Exception as error:  # a failure is a row
        return {"failed": f"{type(error).__name__}: {error}"[:400]}
    finally:
        engine.close()
