"""The language model of a checkpoint, loaded without its vision encoder.

The classes are transformers' own; only `model.visual` is a placeholder. The forward pass is complete:
embeddings enter through `mm_encoder_outputs`, as in upstream's generate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.contract.wire.request import ModelShape
from qwen3vl_edge.server.engines.checkpoint_config import end_ids_of, load_tokenizer, model_shape
from qwen3vl_edge.server.options import ServerOptions

_VISUAL_KEYS = [r"(^|\.)visual\."]
# Without Qwen3.5's layers for several tokens at once too, which transformers does not have.
_HYBRID_KEYS = [*_VISUAL_KEYS, r"^mtp.*"]
_STATE_BYTES = 4  # of a value of a recurrent state: Gated DeltaNet computes it in float32 in every dtype


class AbsentVisionEncoder(nn.Module):
    """Placeholder for the encoder: no parameters, only the attributes that the model reads."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.spatial_merge_size: int = config.spatial_merge_size
        self.dtype = torch.get_default_dtype()

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise: pixels are encoded on the device.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("the server holds no vision encoder: send embeddings, not pixel values")


class _WithoutEncoder:
    """A model of transformers without the encoder's parameters."""

    _keys_to_ignore_on_load_unexpected = _VISUAL_KEYS

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        # from_pretrained builds on the meta device, so the encoder replaced here was never allocated.
        self.model.visual = AbsentVisionEncoder(config.vision_config)  # type: ignore[attr-defined]


class DenseLanguageModel(_WithoutEncoder, Qwen3VLForConditionalGeneration):  # type: ignore[misc]
    """`Qwen3VLForConditionalGeneration` without the encoder's parameters."""


class MoeLanguageModel(_WithoutEncoder, Qwen3VLMoeForConditionalGeneration):  # type: ignore[misc]
    """`Qwen3VLMoeForConditionalGeneration` without the encoder's parameters."""


class HybridLanguageModel(_WithoutEncoder, Qwen3_5ForConditionalGeneration):  # type: ignore[misc]
    """`Qwen3_5ForConditionalGeneration` without the encoder's parameters."""

    _keys_to_ignore_on_load_unexpected = _HYBRID_KEYS


class HybridMoeLanguageModel(_WithoutEncoder, Qwen3_5MoeForConditionalGeneration):  # type: ignore[misc]
    """`Qwen3_5MoeForConditionalGeneration` without the encoder's parameters."""

    _keys_to_ignore_on_load_unexpected = _HYBRID_KEYS


_CLASSES: dict[str, Any] = {
    "qwen3_vl": DenseLanguageModel,
    "qwen3_vl_moe": MoeLanguageModel,
    "qwen3_5": HybridLanguageModel,
    "qwen3_5_moe": HybridMoeLanguageModel,
}


@dataclass(frozen=True)
class LoadedModel:
    """A language model ready to generate, and the properties that requests are checked against.

    Attributes:
        model: of one of the classes above, in eval mode.
        end_ids: token ids that end an answer.
        parameters: parameter count of the language model, tied ones counted once.
        vision_parameters: parameter count of the checkpoint's encoder, which was not loaded.
    """

    name: str
    model: Any
    tokenizer: Any
    shape: ModelShape
    end_ids: tuple[int, ...]
    max_positions: int
    parameters: int
    vision_parameters: int
    attention: str

    @property
    def device(self) -> torch.device:
        """Device of the model inputs; with a `device_map` over several devices, the embedding table's."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers that keep them."""
        text = self.model.config.text_config
        layers = len(self.decoder_layers) - len(self.recurrent_layers)
        return int(2 * layers * text.num_key_value_heads * text.head_dim * self.dtype.itemsize)

    @cached_property
    def recurrent_layers(self) -> frozenset[int]:
        """The layers that keep states in place of keys and values: Gated DeltaNet, as config.json says."""
        kinds = getattr(self.model.config.text_config, "layer_types", None) or ()
        return frozenset(index for index, kind in enumerate(kinds) if kind == "linear_attention")

    @property
    def state_bytes(self) -> int:
        """Bytes of one request's states in all recurrent layers, however long it is.

        Shapes are those of `Qwen3_5GatedDeltaNet`: a convolution over queries, keys and values, and a matrix per head.
        """
        if not self.recurrent_layers:
            return 0
        text = self.model.config.text_config
        keys = text.linear_num_key_heads * text.linear_key_head_dim
        values = text.linear_num_value_heads * text.linear_value_head_dim
        conv = (2 * keys + values) * text.linear_conv_kernel_dim * self.dtype.itemsize
        recurrent = values * text.linear_key_head_dim * _STATE_BYTES
        return int(len(self.recurrent_layers) * (conv + recurrent))

    @property
    def state_tokens(self) -> int:
        """Tokens whose keys and values are as many bytes as one request's states."""
        return -(-self.state_bytes // self.kv_bytes_per_token)

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The layers of the language model, in their order."""
        layers: Sequence[nn.Module] = self.model.model.language_model.layers
        return layers

    @property
    def vocabulary(self) -> int:
        """Columns of the logits."""
        return int(self.model.config.text_config.vocab_size)

    @property
    def on_one_gpu(self) -> bool:
        """Whether all of it is on one CUDA device."""
        return {parameter.device for parameter in self.model.parameters()} == {self.device} and (
            self.device.type == "cuda"
        )

    def describe(self) -> dict[str, Any]:
        """Details for `/readyz` and `/v1/models`."""
        return {
            "engine": "transformers",
            "parameters": self.parameters,
            "vision_parameters_not_loaded": self.vision_parameters,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": self.attention,
        }


def load_language_model(checkpoint: Checkpoint, options: ServerOptions) -> LoadedModel:
    """Load tokenizer and language model; no visual tensor is read.

    Raises:
        CheckpointError: a file is missing or malformed, a weight of the language model is absent, or the
            attention implementation or device is not available on this machine.
    """
    shape = model_shape(checkpoint)
    vision_parameters = sum(math.prod(tensor.entry.shape) for tensor in checkpoint.visual_tensors.values())
    tokenizer = load_tokenizer(checkpoint)
    model = _load_model(checkpoint, options)
    end_ids = end_ids_of(model.generation_config.eos_token_id, tokenizer)
    # Requests set every sampling parameter; the checkpoint's recommendations must not act as defaults.
    model.generation_config = GenerationConfig(eos_token_id=list(end_ids), pad_token_id=end_ids[-1])
    return LoadedModel(
        name=checkpoint.name,
        model=model,
        tokenizer=tokenizer,
        shape=replace(shape, largest=float(torch.finfo(model.dtype).max)),
        end_ids=end_ids,
        max_positions=int(model.config.text_config.max_position_embeddings),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vision_parameters=vision_parameters,
        attention=str(model.config.text_config._attn_implementation),
    )


def _load_model(checkpoint: Checkpoint, options: ServerOptions) -> Any:
    kind = _CLASSES[checkpoint.config["model_type"]]
    try:
        model, info = kind.from_pretrained(
            checkpoint.path,
            dtype=options.dtype if options.dtype == "auto" else getattr(torch, options.dtype),
            device_map=options.device_map,
            attn_implementation=options.attention,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and accelerate raise many types; all mean that loading failed
        reason = " ".join(str(error).split())[:300]
        flash = "flash" in reason.lower()
        raise CheckpointError(
            f"the language model of {checkpoint.path} cannot be loaded with --device-map {options.device_map}, "
            f"--dtype {options.dtype} and --attention {options.attention} ({type(error).__name__}: {reason})",
            field="--attention" if flash else str(checkpoint.path),
            remedy="Install flash-attn, or use --attention sdpa." if flash else None,
        ) from error
    if missing := sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}):
        raise CheckpointError(
            f"{checkpoint.path} lacks weights of the language model or holds them in another shape",
            field=missing[0],
            got=f"{len(missing)} at fault",
            remedy="Download the whole checkpoint again.",
        )
    return model.eval()
