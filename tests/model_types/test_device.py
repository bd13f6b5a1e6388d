"""A device of each model type: export, both preprocessings, the encoder, and a request that a server accepts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import ModelMismatchError, WireError
from qwen3vl_edge.contract.model_types import MODEL_TYPES
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.request import Limits, ModelShape
from qwen3vl_edge.contract.wire.validate import validate_request
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.edge_runtime.inputs.lean.processor import prepare_lean_prompt
from qwen3vl_edge.edge_runtime.inputs.prompt import prepare_prompt
from qwen3vl_edge.tools.dev.train_reference.heldout import clip_part
from qwen3vl_edge.tools.dev.train_reference.scenes import motion_clip
from tests.support.encoders.export_models import assert_close, picture, run_encoder
from tests.support.model_types.tiny_checkpoint import oracle_of

EXACT = EdgeOptions(backend_options=BackendOptions(precision="fp32"), wire_dtype="fp32")
types = pytest.mark.parametrize("model_type", MODEL_TYPES)
OTHER = {"qwen3_vl": "qwen3_5", "qwen3_5": "qwen3_vl", "qwen3_vl_moe": "qwen3_5_moe", "qwen3_5_moe": "qwen3_5"}


def conversation() -> list[dict[str, Any]]:
    """Two pictures, one of a bucket's size, a clip, several turns, and letters with marks, which tokenizers split."""
    wide, other = Image.fromarray(picture(64, 96)), Image.fromarray(picture(100, 131, seed=4))
    return [
        {"role": "system", "content": "You see. <think>"},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": wide},
                {"type": "image", "image": other},
                {"type": "text", "text": "Which ones? नमस्ते e\u0301 가 ½"},
            ],
        },
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nBoth."},
        {
            "role": "user",
            "content": [clip_part(motion_clip(random.Random(7), 128, 96)), {"type": "text", "text": "And what moves?"}],
        },
    ]


def shape_of(model_type: str) -> ModelShape:
    """What a server of this type checks requests against, from transformers' config and encoder."""
    source = oracle_of(model_type)
    config = source.model.config
    return ModelShape(
        model_hash=source.checkpoint.model_hash,
        hidden_size=config.text_config.hidden_size,
        deepstack_levels=len(getattr(source.model.model.visual, "deepstack_merger_list", ())),
        merge_size=config.vision_config.spatial_merge_size,
        vocab_size=config.text_config.vocab_size,
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
    )


@types
def test_the_device_sends_what_transformers_computes(model_type: str, bundle_of: Callable[[str], Path]) -> None:
    source, shape = oracle_of(model_type), shape_of(model_type)
    with open_edge(bundle_of(model_type), EXACT) as edge:
        assert edge.bundle.manifest.model.model_type == model_type
        assert len(edge.bundle.manifest.vision.output_names) == 1 + shape.deepstack_levels
        encoded = edge.encode(conversation())
    for sent, item in zip(encoded.request.media, encoded.media, strict=True):
        expected = run_encoder(source.model.model.visual, item.grid, item.input.pixel_values)
        assert_close([np.asarray(array, np.float32) for array in sent.arrays], expected, 1e-5)
    received = decode_request(memoryview(b"".join(encode_request(encoded.request).buffers)), Limits())
    validate_request(received, shape, Limits())
    assert [len(item.deepstack) for item in received.media] == [shape.deepstack_levels] * 3


@types
def test_both_preprocessings_are_the_types_own(model_type: str, bundle_of: Callable[[str], Path]) -> None:
    with open_edge(bundle_of(model_type), EXACT) as edge:
        assert edge.lean is not None
        messages = conversation()
        assert edge.lean.serves(messages)
        lean = prepare_lean_prompt(messages, edge.lean, edge.policy)
        reference = prepare_prompt(messages, edge.processor, edge.policy)
        assert type(edge.processor.hf).__name__ == MODEL_TYPES[model_type].processor
        assert type(edge.processor.hf.tokenizer).__name__ in (MODEL_TYPES[model_type].tokenizer, "TokenizersBackend")
    np.testing.assert_array_equal(lean.input_ids, reference.input_ids)
    for one, other in zip(lean.media, reference.media, strict=True):
        assert (one.kind, one.choice) == (other.kind, other.choice)
        assert one.input.pixel_values.tobytes() == other.input.pixel_values.tobytes()
    config, merge = oracle_of(model_type).model.config, 4
    for kind, token in (("image", config.image_token_id), ("video", config.video_token_id)):
        grids = [item.grid for item in reference.media if item.kind == kind]
        assert (reference.input_ids == token).sum() == sum(grid.patches // merge for grid in grids)
    assert "seconds>" in reference.text or torch.is_tensor(reference.inputs["video_grid_thw"])


@types
def test_a_server_of_another_type_refuses_by_name(model_type: str, bundle_of: Callable[[str], Path]) -> None:
    with open_edge(bundle_of(model_type), EXACT) as edge:
        request = edge.encode(conversation()[:2]).request
    other = shape_of(OTHER[model_type])
    with pytest.raises(ModelMismatchError, match="made for another model"):
        validate_request(request, other, Limits())
    if shape_of(model_type).deepstack_levels != other.deepstack_levels:
        with pytest.raises(WireError, match="DeepStack levels do not match"):
            validate_request(replace(request, model_hash=other.model_hash), other, Limits())


@types
def test_the_bundle_holds_what_it_says(model_type: str, bundle_of: Callable[[str], Path]) -> None:
    bundle = open_bundle(bundle_of(model_type))
    names = bundle.manifest.vision.output_names
    for graph in bundle.manifest.precision("fp32").graphs:
        assert tuple(row.output for row in graph.parity) == names
        assert tuple(spec.name for spec in graph.outputs) == names
