"""Start vLLM: arguments, an event loop in its own thread, the model, and a first generation."""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.errors import CheckpointError, ContractError, InputError
from qwen3vl_edge.server.engines.checkpoint_config import end_ids_of, load_tokenizer, model_shape
from qwen3vl_edge.server.engines.vllm.arguments import engine_arguments, require_vllm
from qwen3vl_edge.server.options import ServerOptions

# Read when vLLM is imported. Its workers start from a process that already has threads, in which `fork` may hang.
_ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1"}


def open_engine(checkpoint: Checkpoint, options: ServerOptions) -> Any:
    """Load a `VllmEngine` and warm it up with a generation.

    Raises:
        InputError: vLLM is missing, or an argument for it is unknown or invalid.
        CheckpointError: the model cannot be loaded with these settings.
    """
    require_vllm()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm.engine.arg_utils import AsyncEngineArgs

    from qwen3vl_edge.server.engines.vllm.engine import QueueOptions, VllmEngine
    from qwen3vl_edge.server.engines.vllm.stat_logger import StatLogger

    arguments = engine_arguments(checkpoint, options, [item.name for item in fields(AsyncEngineArgs)])
    stat_logger = StatLogger()
    loop = asyncio.new_event_loop()
    threading.Thread(target=_run_loop, args=(loop,), name="vllm", daemon=True).start()
    queue = QueueOptions(
        max_queue=options.max_queue,
        max_queue_per_client=options.max_queue_per_client or None,
        max_batch=options.max_batch,
        max_seconds=options.max_generation_s,
        stall_s=options.stall_s,
    )
    try:
        llm = _wait(_start_llm(AsyncEngineArgs, arguments, stat_logger), loop)
    except BaseException as error:
        _stop(loop)
        raise _start_error(error, checkpoint, options) from error
    engine = None
    try:
        loaded = _wait(_loaded_model(llm, checkpoint, options), loop)
        cache = llm.vllm_config.cache_config
        stat_logger.set_capacity(int(cache.num_gpu_blocks or 0) * int(cache.block_size or 0))
        engine = VllmEngine(llm, loop, loaded, stat_logger, options.limits, queue)
        engine.warm_up()
    except BaseException:
        if engine is not None:
            engine.close()
        else:
            llm.shutdown()
            _stop(loop)
        raise
    return engine


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon_threadsafe(loop.stop)


def _wait(work: Any, loop: asyncio.AbstractEventLoop) -> Any:
    return asyncio.run_coroutine_threadsafe(work, loop).result()


async def _start_llm(kind: Any, arguments: Mapping[str, Any], stat_logger: Any) -> Any:
    """Create the `AsyncLLM`, inside the event loop that it will run in."""
    from vllm.v1.engine.async_llm import AsyncLLM

    from qwen3vl_edge.server.engines.vllm import (
        worker,  # registers its classes in this process too, where vLLM inspects the model's class
    )

    worker.register()
    return AsyncLLM.from_engine_args(kind(**arguments), stat_loggers=[stat_logger])


async def _loaded_model(llm: Any, checkpoint: Checkpoint, options: ServerOptions) -> Any:
    """The served model, with the counts that its workers report.

    Raises:
        CheckpointError: a worker runs without DeepStack, so its answers would differ from the model's.
    """
    import torch
    import vllm

    from qwen3vl_edge.server.engines.vllm.model import VllmModel

    shape = model_shape(checkpoint)
    workers = await llm.collective_rpc("qwen3vl_edge_facts")
    wrong = [facts for facts in workers if facts["deepstack_levels"] != shape.deepstack_levels]
    if wrong:
        raise CheckpointError(
            "vLLM runs the model without its DeepStack levels",
            field="engine",
            expected=f"{shape.deepstack_levels} levels in each worker",
            got=f"{wrong[0]['deepstack_levels']} with class {wrong[0]['class']}",
            remedy=f"Use the vLLM release that docs/guides/server/vllm.md names; this is {vllm.__version__}.",
        )
    tokenizer = load_tokenizer(checkpoint)
    config = llm.model_config
    return VllmModel(
        name=checkpoint.name,
        tokenizer=tokenizer,
        shape=replace(shape, largest=float(torch.finfo(config.dtype).max)),
        end_ids=end_ids_of(_eos_token_id(checkpoint), tokenizer),
        vision_start_id=int(checkpoint.config["vision_start_token_id"]),
        vision_end_id=int(checkpoint.config["vision_end_token_id"]),
        max_positions=int(config.max_model_len),
        max_medium_tokens=int(llm.input_processor.mm_encoder_cache_size),
        max_logprobs=int(config.max_logprobs) if config.max_logprobs >= 0 else shape.vocab_size,
        vision_parameters=sum(math.prod(tensor.entry.shape) for tensor in checkpoint.visual_tensors.values()),
        workers=tuple(workers),
        settings={
            "vllm": vllm.__version__,
            "tensor_parallel": options.tensor_parallel,
            "pipeline_parallel": options.pipeline_parallel,
            "expert_parallel": options.expert_parallel,
            "vllm_args": dict(options.vllm_args),
        },
    )


def _eos_token_id(checkpoint: Checkpoint) -> int | list[int] | None:
    """As transformers sets `GenerationConfig.eos_token_id`: from its own file, or else from the model's config."""
    file = checkpoint.path / "generation_config.json"
    try:
        end_ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({type(error).__name__})", field=str(file)) from None
    config = checkpoint.config
    if end_ids is None:
        end_ids = config.get("text_config", {}).get("eos_token_id") or config.get("eos_token_id")
    return end_ids  # type: ignore[no-any-return]


def _start_error(error: BaseException, checkpoint: Checkpoint, options: ServerOptions) -> BaseException:
    """Convert a startup error: vLLM raises many types; all mean that these settings cannot serve the model."""
    if isinstance(error, ContractError) or not isinstance(error, Exception):
        return error
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, TypeError | ValueError):
        return InputError(f"vLLM rejects these settings ({type(error).__name__}: {reason})", field="--engine")
    return CheckpointError(
        f"vLLM cannot serve {checkpoint.path} with --tensor-parallel {options.tensor_parallel}, --pipeline-parallel "
        f"{options.pipeline_parallel} and --dtype {options.dtype} ({type(error).__name__}: {reason})",
        field=str(checkpoint.path),
        remedy="vLLM's own log above says why.",
    )
