"""Checkpoints with random weights at any size: full-size towers are tested and timed without a model hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, Qwen2VLImageProcessor

from qwen3vl_edge.contract.model_types import MODEL_TYPES

# A tower that exports in about a second; callers override what they are about.
TINY_VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_heads": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [0, 1, 3],
}
TINY_TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]},
}
MOE_TEXT = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
# The released towers (config.json of Qwen3-VL-2B-Instruct and Qwen3-VL-8B-Instruct).
TOWERS: dict[str, dict[str, Any]] = {
    "2B": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "deepstack_visual_indexes": [5, 11, 17],
    },
    "8B": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}
# Towers of types without DeepStack (Qwen3.5 and later), by width.
PLAIN_TOWERS: dict[str, dict[str, Any]] = {
    "768": {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12, "out_hidden_size": 1024},
    "1024": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560},
    "1152": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "out_hidden_size": 4096},
}


@dataclass(frozen=True)
class RandomCheckpoint:
    """A checkpoint folder, and the encoder that it was saved from."""

    path: Path
    encoder: Any


def full_config(model_type: str = "qwen3_vl", **vision: Any) -> Any:
    """The config of a model with a tiny language model and the given tower."""
    tower = TINY_VISION | vision
    if MODEL_TYPES[model_type].deepstack is None:
        del tower["deepstack_visual_indexes"]
    moe = MOE_TEXT if model_type.endswith("_moe") else {}
    text = TINY_TEXT | {"hidden_size": tower["out_hidden_size"]} | moe
    return AutoConfig.for_model(model_type, vision_config=tower, text_config=text)


def randomise(module: Any, seed: int = 0) -> None:
    """Values as a trained tower has them: no bias is 0 and no norm is 1, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            spread = 0.3 if value.ndim == 1 or "pos_embed" in name else 1.2 * value[0].numel() ** -0.5
            value.normal_(0, spread, generator=generator)
            if ".norm" in name and name.endswith("weight"):
                value += 1


def encoder_checkpoint(
    folder: Path, dtype: torch.dtype = torch.float32, model_type: str = "qwen3_vl", **vision: Any
) -> RandomCheckpoint:
    """A checkpoint that holds only an encoder, which is all that the export reads."""
    config = full_config(model_type, **vision)
    encoder = AutoModel.from_config(config.vision_config, dtype=torch.float32).eval()
    randomise(encoder)
    stored = {f"model.visual.{name}": value.to(dtype).contiguous() for name, value in encoder.state_dict().items()}
    # The oracle holds what the file holds: a bfloat16 file has lost bits before the export reads it.
    encoder.load_state_dict({name.removeprefix("model.visual."): value.float() for name, value in stored.items()})
    config.save_pretrained(folder)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    tower = config.vision_config
    save_image_processor(folder, tower.patch_size, tower.spatial_merge_size, tower.temporal_patch_size)
    return RandomCheckpoint(folder, encoder)


def save_image_processor(folder: Path, patch_size: int = 16, merge_size: int = 2, temporal_patch_size: int = 2) -> None:
    """An image processor with the tower's geometry, and mean and std unlike 0.5 so that a swap shows."""
    Qwen2VLImageProcessor(
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=temporal_patch_size,
        image_mean=[0.48, 0.46, 0.41],
        image_std=[0.27, 0.26, 0.28],
        size={"shortest_edge": 1024, "longest_edge": 2**22},
    ).save_pretrained(folder)
