"""Convert a prepared request to a rendered vLLM engine input, so that vLLM does not build its own prompt.

vLLM's text processor would collapse and expand placeholders and write a clip's timestamps itself. A rendered input
skips it: token ids, the positions of media among them and their embeddings enter the engine unchanged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.request import KINDS, GenerateRequest, MediaEmbeddings
from qwen3vl_edge.server.engines.prompt import MediaSpan, media_spans
from qwen3vl_edge.server.engines.vllm.model import VllmModel


def engine_input(request: GenerateRequest, loaded: VllmModel, client: str) -> dict[str, Any]:
    """vLLM's `EngineInput`.

    Args:
        request: as `prepare` returned it.
        client: cache salt of vLLM's prefix cache, so that response times do not reveal another client's prompts.
    """
    ids = [int(token) for token in request.input_ids]
    salt = client or None
    if not request.media:
        return dict(tokens_input(ids, cache_salt=salt))
    spans = media_spans(request, loaded.shape)
    items: dict[str, Any] = {}
    hashes: dict[str, list[str]] = {}
    places: dict[str, list[PlaceholderRange]] = {}
    for kind in KINDS:
        of_kind = [span for span in spans if span.media.kind == kind]
        if of_kind:
            items[kind] = _items(kind, [span.media for span in of_kind], loaded)
            hashes[kind] = [_name(span.media, loaded, client) for span in of_kind]
            places[kind] = [_place(span, request, loaded) for span in of_kind]
    return dict(mm_input(ids, MultiModalKwargsItems(items), hashes, places, cache_salt=salt))


def _items(kind: str, media: list[MediaEmbeddings], loaded: VllmModel) -> Any:
    """Per medium `{kind}_embeds` [n, D·(1 + levels)], embeddings and DeepStack side by side, and its grid int64 [3]."""
    packed = [torch.from_numpy(np.concatenate(item.arrays, axis=1)).to(loaded.torch_dtype) for item in media]
    grids = torch.tensor([item.grid.as_list() for item in media], dtype=torch.int64)
    sizes = torch.tensor([len(rows) for rows in packed])
    embeds, grid = f"{kind}_embeds", f"{kind}_grid_thw"
    fields = {
        embeds: MultiModalFieldConfig.flat_from_sizes(kind, sizes),
        grid: MultiModalFieldConfig.batched(kind, keep_on_cpu=True),
    }
    return MultiModalKwargsItems.from_hf_inputs(BatchFeature({embeds: torch.cat(packed), grid: grids}), fields)[kind]


def _name(item: MediaEmbeddings, loaded: VllmModel, client: str) -> str:
    """The key of vLLM's embedding cache: computed from the tensors, not from the hash that the client sent."""
    return f"{client}/{item.kind}/{embedding_hash(item, loaded.shape.model_hash)}"


def _place(span: MediaSpan, request: GenerateRequest, loaded: VllmModel) -> PlaceholderRange:
    """The placeholder range of a medium's embeddings.

    A clip's range begins at the marker before its first frame: vLLM searches the frames from there by their markers
    (`check_clips`). The mask excludes the tokens between frames.
    """
    if span.media.kind == "image":
        return PlaceholderRange(span.start, span.end - span.start)
    start, end = span.start - 1, span.end + 1
    mask = torch.from_numpy(request.input_ids[start:end] == loaded.shape.video_token_id)
    return PlaceholderRange(start, end - start, mask)
