"""Code inside vLLM's workers: Qwen3-VL classes without the encoder's weights, and a count of the loaded parameters.

vLLM does not load an encoder if the limit of its modalities is 0, and with `enable_mm_embeds` still accepts embeddings.
Its Qwen3-VL then also disables DeepStack (0.32: `use_deepstack` requires the encoder), although the levels arrive
with the embeddings and are added in the language model. So these classes enable it again and change nothing else.

vLLM imports this module in every worker before it loads the model, because `worker_extension_cls` names
`WorkerExtension`; the last lines of the module register these classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl_moe import Qwen3VLMoeForConditionalGeneration
from vllm.model_executor.models.registry import ModelRegistry
from vllm.model_executor.models.utils import StageMissingLayer

from qwen3vl_edge.contract.bundle.checkpoint import SINGLE_FILE


class DenseLanguageModel(Qwen3VLForConditionalGeneration):  # type: ignore[misc]
    """vLLM's dense Qwen3-VL, its encoder without weights."""

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.allow_patterns_overrides = _weight_files(vllm_config)
        _switch_deepstack_on(self, vllm_config)
        self.qwen3vl_edge_parameters = _count(self)


class MoeLanguageModel(Qwen3VLMoeForConditionalGeneration):  # type: ignore[misc]
    """vLLM's Qwen3-VL with experts, its encoder without weights."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.allow_patterns_overrides = _weight_files(vllm_config)
        _switch_deepstack_on(self, vllm_config)
        self.qwen3vl_edge_parameters = _count(self)


class WorkerExtension:
    """Mixed into vLLM's worker class; called there through `collective_rpc`."""

    def qwen3vl_edge_facts(self) -> dict[str, Any]:
        """Properties of this worker's model; parameters counted at allocation, as CPU kernels repack weights later."""
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        vision = 0 if isinstance(model.visual, StageMissingLayer) else _count(model.visual)
        weight = next(model.language_model.parameters())
        return {
            "class": type(model).__name__,
            "parameters": getattr(model, "qwen3vl_edge_parameters", _count(model)) - vision,
            "vision_parameters": vision,
            "deepstack_levels": int(model.deepstack_num_level) if model.use_deepstack else 0,
            "device": str(weight.device),
            "dtype": str(weight.dtype).removeprefix("torch."),
        }


def register() -> None:
    """Register the classes above with vLLM in this process; idempotent."""
    ModelRegistry.register_model("Qwen3VLForConditionalGeneration", DenseLanguageModel)
    ModelRegistry.register_model("Qwen3VLMoeForConditionalGeneration", MoeLanguageModel)


def _weight_files(vllm_config: Any) -> list[str] | None:
    """A single weights file alone, as transformers reads it: vLLM would follow an index that an earlier save left."""
    return [SINGLE_FILE] if (Path(vllm_config.model_config.model) / SINGLE_FILE).is_file() else None


def _switch_deepstack_on(model: Any, vllm_config: Any) -> None:
    """Set up DeepStack as `Qwen3VLForConditionalGeneration.__init__` does when it loads the encoder."""
    levels = getattr(model.config.vision_config, "deepstack_visual_indexes", None)
    if model.use_deepstack or not levels:
        return
    model.use_deepstack = True
    model.deepstack_num_level = len(levels)
    model.multiscale_dim = model.visual_dim * len(levels)
    shape = (vllm_config.scheduler_config.max_num_batched_tokens, model.config.text_config.hidden_size)
    model.deepstack_input_embeds = [torch.zeros(shape) for _ in levels]
    model.deepstack_input_embeds_num_tokens = 0


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


register()
