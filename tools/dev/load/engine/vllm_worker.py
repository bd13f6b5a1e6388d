"""The process of the vLLM candidate: reads the model and then batches, a line each, and answers with token times."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.server.engines.vllm.start import open_engine
from qwen3vl_edge.server.options import ServerOptions
from qwen3vl_edge.tools.dev.bench.line_process import Answers
from qwen3vl_edge.tools.dev.load.engine.batch import Batch, ask

MEMORY_SHARE = 0.3  # of the GPU's: the other candidates hold the model too


def main() -> None:
    """Serve batches until the driver ends this process."""
    answers = Answers()
    try:
        engine = _open(json.loads(sys.stdin.readline()))
    except Exception as error:  # vLLM raises many types
        answers.refuse(error)
        return
    answers.reply({"ready": True})
    for line in sys.stdin:
        try:
            run = ask(engine, Batch(*json.loads(line)).requests(engine.loaded.shape.model_hash))
        except Exception as error:
            answers.refuse(error)
        else:
            answers.reply({"seconds": run.seconds, "times": [asdict(sample)["tokens"] for sample in run.samples]})


def _open(document: dict[str, Any]) -> Any:
    options = ServerOptions(
        model=document["model"],
        engine="vllm",
        dtype=document["dtype"],
        max_batch=document["max_batch"],
        max_queue=1000,
        prefix_cache_mib=0,
        gpu_memory_utilization=MEMORY_SHARE,
        # On a CPU vLLM would compile for minutes.
        vllm_args={"enforce_eager": True} if document["device"] == "cpu" else {},
    )
    return open_engine(open_checkpoint(options.model), options)
