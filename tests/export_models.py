"""Random Qwen3-VL checkpoints for the export's tests, and transformers' own encoder as their oracle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from contract.bundle import Bundle
from contract.grid import Grid
from contract.manifest import GraphRecord
from contract.position_tables import position_interpolation, rotary_cos_sin

# A tower that exports in about a second; tests override what they are about.
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


@dataclass(frozen=True)
class RandomCheckpoint:
    """A checkpoint folder, and the encoder that it was saved from."""

    path: Path
    encoder: Any


def full_config(moe: bool = False, **vision: Any) -> Any:
    """The config of a model with a tiny language model and the given tower."""
    tower = TINY_VISION | vision
    text = TINY_TEXT | {"hidden_size": tower["out_hidden_size"]} | (MOE_TEXT if moe else {})
    return (Qwen3VLMoeConfig if moe else Qwen3VLConfig)(vision_config=tower, text_config=text)


def randomise(module: Any, seed: int = 0) -> None:
    """Values as a trained tower has them: no bias is 0 and no norm is 1, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            spread = 0.3 if value.ndim == 1 or "pos_embed" in name else 1.2 * value[0].numel() ** -0.5
            value.normal_(0, spread, generator=generator)
            if ".norm" in name and name.endswith("weight"):
                value += 1


def encoder_checkpoint(folder: Path, dtype: torch.dtype = torch.float32, **vision: Any) -> RandomCheckpoint:
    """A checkpoint that holds only an encoder, which is all that the export reads."""
    config = full_config(**vision)
    encoder = Qwen3VLVisionModel._from_config(config.vision_config, dtype=torch.float32).eval()
    randomise(encoder)
    stored = {f"model.visual.{name}": value.to(dtype).contiguous() for name, value in encoder.state_dict().items()}
    # The oracle holds what the file holds: a bfloat16 file has lost bits before the export reads it.
    encoder.load_state_dict({name.removeprefix("model.visual."): value.float() for name, value in stored.items()})
    config.save_pretrained(folder)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    save_image_processor(folder)
    return RandomCheckpoint(folder, encoder)


def sharded_checkpoint(folder: Path, moe: bool) -> RandomCheckpoint:
    """A whole model saved by transformers in many shards."""
    config = full_config(moe)
    model = (Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration)(config).eval()
    randomise(model.model.visual)
    model.save_pretrained(folder, max_shard_size="100KB")
    save_image_processor(folder)
    return RandomCheckpoint(folder, model.model.visual)


def save_image_processor(folder: Path) -> None:
    Qwen2VLImageProcessor(
        patch_size=16,
        image_mean=[0.48, 0.46, 0.41],
        image_std=[0.27, 0.26, 0.28],
        size={"shortest_edge": 1024, "longest_edge": 2**22},
    ).save_pretrained(folder)


def edit_config(folder: Path, **vision: Any) -> None:
    """Change vision_config on disk, where transformers' own classes would refuse to write the value."""
    file = folder / "config.json"
    document = json.loads(file.read_text())
    document["vision_config"] |= vision
    file.write_text(json.dumps(document))


def picture(height: int, width: int, seed: int = 3) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] with edges and grain, unlike those that the export itself checks on."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 100 * np.sin(x / 9)[..., None] * np.cos(y / 13)[..., None] * np.array([1, -1, 0.5])
    waves[(x // 24 + y // 16) % 5 == 0] = 240
    return np.clip(waves + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def processor_pixels(folder: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`pixel_values` of the checkpoint's own HF image processor."""
    processor = Qwen2VLImageProcessor.from_pretrained(folder)
    values = processor(Image.fromarray(pixels), do_resize=False, return_tensors="np")["pixel_values"]
    return np.asarray(values, dtype=np.float32)


def run_encoder(encoder: Any, grid: Grid, pixel_values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """embeds, then the DeepStack levels, of transformers' encoder in float32."""
    with torch.inference_mode():
        out = encoder(torch.from_numpy(pixel_values), grid_thw=torch.tensor([grid.as_list()]))
    return [out.pooler_output.numpy(), *(level.numpy() for level in out.deepstack_features)]


def graph_of(bundle: Bundle, kind: str, grid: Grid | None, precision: str) -> GraphRecord:
    bucket = None if grid is None else str(grid)
    return next(g for g in bundle.manifest.precision(precision).graphs if (g.kind, g.bucket) == (kind, bucket))


def run_graph(bundle: Bundle, graph: GraphRecord, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs of a bundle's graph in ONNX Runtime, one thread."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    session = ort.InferenceSession(str(bundle.graph_path(graph)), settings, providers=["CPUExecutionProvider"])
    return list(session.run(list(bundle.manifest.vision.output_names), feeds))


def dynamic_tables(bundle: Bundle, grid: Grid) -> dict[str, NDArray[Any]]:
    vision = bundle.manifest.vision
    indices, weights = position_interpolation(grid, vision.merge_size, vision.num_position_embeddings)
    cos, sin = rotary_cos_sin(grid, vision.merge_size, vision.head_dim, vision.rope_theta)
    return {"position_indices": indices, "position_weights": weights, "rotary_cos": cos, "rotary_sin": sin}


def relative_l2(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = actual.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def assert_close(actual: list[NDArray[Any]], expected: list[NDArray[Any]], limit: float) -> None:
    """Every output within `limit` in relative L2; the message names the output."""
    assert len(actual) == len(expected)
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert one.shape == other.shape
        assert relative_l2(one, other) <= limit, f"output {index}"
