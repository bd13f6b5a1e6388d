"""Random Qwen3-VL checkpoints for the export's tests, and transformers' own encoder as their oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
)

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.manifest import GraphRecord
from qwen3vl_edge.contract.bundle.open import Bundle
from qwen3vl_edge.contract.bundle.position_tables import position_interpolation, rotary_cos_sin
from qwen3vl_edge.contract.bundle.precision import ORT_DISABLED_OPTIMIZERS, PRECISIONS
from qwen3vl_edge.contract.bundle.torch_encoder import encoder_tensors
from qwen3vl_edge.tools.dev.random_checkpoint import RandomCheckpoint, full_config, randomise, save_image_processor


def sharded_checkpoint(folder: Path, moe: bool) -> RandomCheckpoint:
    """A whole model saved by transformers in many shards."""
    config = full_config("qwen3_vl_moe" if moe else "qwen3_vl")
    model = (Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration)(config).eval()
    randomise(model.model.visual)
    model.save_pretrained(folder, max_shard_size="100KB")
    save_image_processor(folder)
    return RandomCheckpoint(folder, model.model.visual)


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
    return [tensor.numpy() for tensor in encoder_tensors(out)]


def graph_of(bundle: Bundle, kind: str, grid: Grid | None, precision: str) -> GraphRecord:
    bucket = None if grid is None else str(grid)
    return next(g for g in bundle.manifest.precision(precision).graphs if (g.kind, g.bucket) == (kind, bucket))


def run_graph(bundle: Bundle, graph: GraphRecord, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Outputs of a bundle's graph in ONNX Runtime, one thread."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    quantized = next(item.precision for item in bundle.manifest.precisions if graph in item.graphs)
    session = ort.InferenceSession(
        str(bundle.graph_path(graph)),
        settings,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=set(ORT_DISABLED_OPTIMIZERS[PRECISIONS[quantized].quantized]),
    )
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
