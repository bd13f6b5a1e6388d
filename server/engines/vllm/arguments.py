"""Convert the server's settings to vLLM's `AsyncEngineArgs`."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Collection, Mapping
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.settings import settings_of
from qwen3vl_edge.server.engines.choice import TRANSFORMERS_SETTINGS
from qwen3vl_edge.server.options import ServerOptions

WORKER_EXTENSION = "qwen3vl_edge.server.engines.vllm.worker.WorkerExtension"

# Arguments that the server's own settings determine, and those that would change the device's prompt.
RESERVED = (
    *("model", "tokenizer", "dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization"),
    *("tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel", "distributed_executor_backend"),
    *("enable_mm_embeds", "limit_mm_per_prompt", "language_model_only", "mm_encoder_only", "mm_processor_kwargs"),
    *("generation_config", "override_generation_config", "logprobs_mode", "skip_tokenizer_init", "runner", "convert"),
    *("worker_extension_cls", "model_class_overrides", "hf_overrides", "video_pruning_rate", "video_pruning_method"),
    *("enable_prefix_caching", "disable_log_stats", "logits_processors", "watermark_config", "tokens_only"),
    "hf_token",  # `/readyz` shows vllm_args, and models are local
)


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed in this environment",
            field="--engine",
            got="vllm",
            remedy="Start the server with the Python of an environment that has vllm and this project "
            "(docs/guides/server/vllm.md), or use --engine transformers.",
        )


def engine_arguments(checkpoint: Checkpoint, options: ServerOptions, known: Collection[str]) -> dict[str, Any]:
    """Keyword arguments of `AsyncEngineArgs`.

    Args:
        known: names of the arguments that it has.

    Raises:
        InputError: `vllm_args` has an unknown argument or one that is set here; or a transformers-only setting is set.
    """
    _check_other_settings(options)
    check_names(options.vllm_args, known)
    arguments: dict[str, Any] = {
        "model": str(checkpoint.path),
        "served_model_name": checkpoint.name,
        "dtype": _dtype(checkpoint, options),
        "max_model_len": options.max_model_len or None,
        "max_num_seqs": options.max_batch,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel,
        "pipeline_parallel_size": options.pipeline_parallel,
        "enable_expert_parallel": options.expert_parallel,
        "distributed_executor_backend": options.distributed_backend or None,
        "enable_prefix_caching": options.prefix_cache_mib > 0,
        # Embeddings only: with both limits at 0 vLLM loads no encoder, and with this flag it still accepts embeddings.
        "enable_mm_embeds": True,
        "limit_mm_per_prompt": {"image": 0, "video": 0},
        "mm_processor_cache_gb": 0,  # cache of encoder inputs; there is no encoder
        "worker_extension_cls": WORKER_EXTENSION,
        "generation_config": "vllm",  # not the checkpoint's: requests set every sampling parameter
        "logprobs_mode": "raw_logprobs",  # before temperature and truncation, as the contract defines
        "disable_log_stats": True,  # vLLM's own logger; `StatLogger` provides the statistics
    }
    return {**arguments, **options.vllm_args}


def check_names(arguments: Mapping[str, Any], known: Collection[str]) -> None:
    """Validate the argument names in `vllm_args` against vLLM's.

    Raises:
        InputError: a name is unknown, or set by the server itself.
    """
    for name in arguments:
        if name in RESERVED:
            raise InputError("the server sets this argument of vLLM itself", field=f"vllm_args.{name}", got=name)
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {close[0]}?" if close else "vLLM's engine arguments list them."
            raise InputError("vLLM has no such argument", field=f"vllm_args.{name}", got=name, remedy=hint)


INSTEAD = {
    "device_map": "vLLM places the model by the parallel sizes and CUDA_VISIBLE_DEVICES",
    "attention": "vLLM takes it from vllm_args.attention_backend",
    "capture": "vLLM captures its steps by itself; vllm_args.enforce_eager turns that off",
    "capture_sizes": "vLLM takes them from vllm_args.cudagraph_capture_sizes",
}


def _check_other_settings(options: ServerOptions) -> None:
    declared = settings_of(ServerOptions)
    for name in TRANSFORMERS_SETTINGS:
        if (value := getattr(options, name)) != declared[name].default:
            raise InputError(
                "this setting applies to the transformers engine only",
                field=declared[name].setting.option or name,
                got=value,
                remedy=f"Leave it out: {INSTEAD.get(name, 'the device encodes pictures')}.",
            )


def _dtype(checkpoint: Checkpoint, options: ServerOptions) -> str:
    """The checkpoint's dtype for "auto": vLLM's own "auto" would run a float32 checkpoint in 16 bits."""
    if options.dtype != "auto":
        return options.dtype
    config = checkpoint.config
    text = config.get("text_config", {})
    names = [part.get(key) for part in (config, text) for key in ("dtype", "torch_dtype")]
    return next((str(name) for name in names if name), "auto")
