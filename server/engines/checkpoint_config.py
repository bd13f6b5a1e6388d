"""A checkpoint's configuration for both engines: the shape of requests, the tokenizer, the end tokens."""

from __future__ import annotations

from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.processor_files import chat_template
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.contract.wire.request import ModelShape

END_TOKENS = ("<|im_end|>", "<|endoftext|>")


def model_shape(checkpoint: Checkpoint) -> ModelShape:
    """The shape that a request's tensors must have, from `config.json` only.

    Raises:
        CheckpointError: the config lacks a key.
    """
    config = checkpoint.config
    try:
        text, vision = config["text_config"], config["vision_config"]
        return ModelShape(
            model_hash=checkpoint.model_hash,
            hidden_size=int(text["hidden_size"]),
            deepstack_levels=len(checkpoint.deepstack_layers),
            merge_size=int(vision["spatial_merge_size"]),
            vocab_size=int(text["vocab_size"]),
            image_token_id=int(config["image_token_id"]),
            video_token_id=int(config["video_token_id"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.path / 'config.json'} lacks a key of its model type, or has a wrong type",
            field="config.json",
            got=repr(error),
        ) from None


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer, with the chat template that the checkpoint's processor uses.

    Raises:
        CheckpointError: a file is missing or malformed.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True)
        if (template := chat_template(checkpoint.path)) is not None:
            # The device's, whatever template the tokenizer's own files name; others by name are the tokenizer's.
            own = tokenizer.chat_template
            tokenizer.chat_template = {**own, "default": template} if isinstance(own, dict) else template
        return tokenizer
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises many types; all mean that it cannot be loaded
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"the tokenizer of {checkpoint.path} cannot be loaded ({reason})", field="tokenizer"
        ) from error


def end_ids_of(eos_token_id: int | list[int] | None, tokenizer: Any) -> tuple[int, ...]:
    """Ids of the tokens that end an answer: the checkpoint's, or else Qwen's end tokens that the tokenizer has.

    Args:
        eos_token_id: from the checkpoint's generation config.

    Raises:
        CheckpointError: there is no end token.
    """
    if eos_token_id is not None:
        return tuple(eos_token_id) if isinstance(eos_token_id, list) else (int(eos_token_id),)
    vocabulary = tokenizer.get_vocab()
    end_ids = [vocabulary[token] for token in END_TOKENS if token in vocabulary]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in end_ids:
        end_ids.append(tokenizer.eos_token_id)
    if not end_ids:
        raise CheckpointError(
            "the checkpoint has no end token", field="eos_token_id", remedy="Add it to generation_config.json."
        )
    return tuple(end_ids)
