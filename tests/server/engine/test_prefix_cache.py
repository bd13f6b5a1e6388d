"""Keys and values of an ended request are used again only where everything before is the same, and change no answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling
from qwen3vl_edge.server.engines.transformers.batch_options import BatchOptions
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from qwen3vl_edge.server.engines.transformers.kv_cache.prefix_cache import PrefixCache
from qwen3vl_edge.server.engines.transformers.language_model import load_language_model
from qwen3vl_edge.server.options import ServerOptions
from tests.support.server_checkpoint import CASE_NAMES, make_case, oracle

torch.set_num_threads(1)
MIB = 2**20


def make_engine(prefix_bytes: int = 64 * MIB, **options: Any) -> TransformersEngine:
    loaded = load_language_model(oracle(False).checkpoint, ServerOptions(model="", device_map="cpu"))
    return TransformersEngine(loaded, options=BatchOptions(prefix_bytes=prefix_bytes, **options))


def next_turn(request: GenerateRequest, answer: tuple[int, ...], more: GenerateRequest) -> GenerateRequest:
    """The conversation so far, the answer, and another question with its own media."""
    ids = np.concatenate([request.input_ids, np.array(answer, dtype=np.int64), more.input_ids])
    return replace(request, input_ids=ids, media=(*request.media, *more.media))


def other_pixels(item: MediaEmbeddings) -> MediaEmbeddings:
    return replace(item, embeds=item.embeds + np.asarray(0.25, item.embeds.dtype), hash=None)


@pytest.mark.parametrize("second", ["text only", "one image", "clip"])
@pytest.mark.parametrize("first", CASE_NAMES)
def test_the_next_turn_is_answered_as_without(first: str, second: str) -> None:
    cached, plain = make_engine(), make_engine(0)
    one, other = make_case(first).request, make_case(second).request
    answer = cached.generate(one).generated_ids
    assert plain.generate(one).generated_ids == answer
    turn = next_turn(one, answer, other)
    with_cache, without = cached.generate(turn), plain.generate(turn)
    assert with_cache.generated_ids == without.generated_ids
    assert with_cache.reused_tokens == one.input_ids.size + len(answer) - 1
    assert without.reused_tokens == 0
    third = next_turn(turn, with_cache.generated_ids, other)
    assert cached.generate(third).generated_ids == plain.generate(third).generated_ids
    assert cached.stats().reused_tokens > with_cache.reused_tokens
    cached.close()
    plain.close()


def test_another_picture_under_the_same_tokens_is_computed_anew() -> None:
    engine, plain = make_engine(), make_engine(0)
    request = make_case("two images").request
    engine.generate(request)
    media = (request.media[0], other_pixels(request.media[1]))
    changed = replace(request, media=media)
    found = engine.generate(changed)
    places = np.flatnonzero(request.input_ids == engine.loaded.shape.image_token_id)
    second = int(places[request.media[0].embeds.shape[0]])
    assert found.reused_tokens in (0, second)  # up to the second picture, if that is worth it
    assert found.generated_ids == plain.generate(changed).generated_ids
    first_changed = replace(request, media=(other_pixels(request.media[0]), request.media[1]))
    assert engine.generate(first_changed).reused_tokens in (0, int(places[0]))
    engine.close()
    plain.close()


def test_the_same_prompt_again_needs_its_last_token_alone() -> None:
    engine = make_engine()
    request = make_case("multi-turn").request
    first, again = engine.generate(request), engine.generate(request)
    assert again.generated_ids == first.generated_ids
    assert again.reused_tokens == request.input_ids.size - 1
    engine.close()


def test_what_one_client_left_no_other_finds() -> None:
    engine = make_engine()
    request = make_case("multi-turn").request
    engine.submit(request, client="a").future.result(20)
    assert engine.submit(request, client="b").future.result(20).reused_tokens == 0
    assert engine.submit(request, client="a").future.result(20).reused_tokens > 0
    engine.close()


def test_it_is_bounded_in_bytes_and_in_time() -> None:
    loaded = load_language_model(oracle(False).checkpoint, ServerOptions(model="", device_map="cpu"))
    now = [0.0]

    def layers(tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(torch.zeros(1, 2, tokens, 16), torch.zeros(1, 2, tokens, 16)) for _ in range(4)]

    def request(index: int) -> GenerateRequest:
        return GenerateRequest(None, np.full(40, index, dtype=np.int64), sampling=Sampling())

    size = 4 * 2 * 2 * 40 * 16 * 4
    cache = PrefixCache(loaded.shape, 3 * size, 10.0, lambda: now[0])
    for index in range(5):
        cache.keep(request(index), [], "", size, lambda: layers(40))
    assert cache.nbytes == 3 * size
    assert cache.find(request(1), "") is None
    found = cache.find(request(2), "")
    assert found is not None
    assert found[0][0].shape[2] == 39
    cache.keep(request(8), [], "", size, lambda: layers(40))  # 3 goes, 2 was used since
    assert cache.find(request(3), "") is None
    assert cache.find(request(2), "") is not None
    longer = replace(request(2), input_ids=np.full(60, 2, dtype=np.int64))
    cache.keep(longer, [], "", size * 60 // 40, lambda: layers(60))  # holds what the shorter held
    assert cache.find(request(8), "") is not None
    assert cache.nbytes == size + size * 60 // 40
    now[0] = 11.0
    assert cache.find(longer, "") is None
    assert cache.nbytes == 0
    cache.keep(request(1), [], "", 25 * size, lambda: pytest.fail("larger than all: it is not copied either"))
    assert cache.nbytes == 0
