"""Media named by hash: what travels, what is found again, and what is refused."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import ContractError, WireError
from qwen3vl_edge.contract.wire.codec import decode_medium, decode_request, encode_medium, encode_request
from qwen3vl_edge.contract.wire.embedding_hash import check_hash, embedding_hash
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, MediaReference
from qwen3vl_edge.server.embeddings.store import EmbeddingStore
from qwen3vl_edge.server.errors import EmbeddingsNotHeldError
from tests.contract.test_wire import assert_same, make_media, make_request

MODEL = "ab" * 32


def hashed(media: MediaEmbeddings) -> MediaEmbeddings:
    return replace(media, hash=embedding_hash(media, MODEL))


def hashed_request() -> GenerateRequest:
    request = make_request()
    return replace(request, media=tuple(hashed(item) for item in request.media))


@given(
    named=st.sets(st.integers(0, 3)),
    dtype=st.sampled_from(["float16", "float32"]),
    kinds=st.lists(st.sampled_from(["image", "video"]), min_size=4, max_size=4),
)
@settings(max_examples=50, deadline=None)
def test_what_is_named_comes_back_as_what_was_held(named: set[int], dtype: str, kinds: list[str]) -> None:
    media = tuple(hashed(make_media(kind, Grid(1, 4, 4), seed, dtype)) for seed, kind in enumerate(kinds))
    request = make_request(media=media)
    store = EmbeddingStore(2**20, 60)
    store.keep_all(request)
    names = {str(media[index].hash) for index in named}
    body = b"".join(encode_request(request, names))
    assert_same(decode_request(body, lookup=store.lookup), request)
    assert (b"by_hash" in body) == bool(named)
    if named:
        with pytest.raises(WireError, match="by hash"):
            decode_request(body)
        with pytest.raises(EmbeddingsNotHeldError) as missing:
            decode_request(body, lookup=EmbeddingStore(0, 60).lookup)
        assert set(missing.value.missing) == names
        assert missing.value.field == f"media.{min(named)}"


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_bodies_by_hash_never_crash(data: st.DataObject) -> None:
    request = hashed_request()
    store = EmbeddingStore(2**20, 60)
    store.keep_all(request)
    body = bytearray(b"".join(encode_request(request, {str(request.media[0].hash)})))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ContractError):
        decode_request(body, lookup=store.lookup)


def test_the_hash_is_of_all_that_is_held() -> None:
    medium = make_media("image", Grid(1, 4, 4))
    bit = medium.deepstack[2].copy()
    bit.view(np.uint16)[0, 0] ^= 1
    others = [
        replace(medium, grid=Grid(1, 2, 8)),
        replace(medium, deepstack=(*medium.deepstack[:2], bit)),
        replace(medium, deepstack=medium.deepstack[:2]),
        replace(medium, embeds=medium.embeds.astype(np.float32)),
        replace(medium, embeds=medium.embeds.reshape(-1, 4)),
    ]
    assert len({embedding_hash(item, MODEL) for item in (medium, *others)} | {embedding_hash(medium, "x")}) == 7
    assert embedding_hash(replace(medium, kind="video"), MODEL) == embedding_hash(medium, MODEL)
    with pytest.raises(WireError, match="hash"):
        check_hash("media.0.hash", replace(medium, hash="0" * 64), MODEL)


def test_one_medium_alone() -> None:
    medium = hashed(make_media("video", Grid(2, 4, 4)))
    found, model_hash = decode_medium(b"".join(encode_medium(medium, MODEL)))
    assert (found.hash, model_hash, embedding_hash(found, MODEL)) == (medium.hash, MODEL, medium.hash)
    with pytest.raises(WireError):
        decode_medium(b"".join(encode_request(hashed_request())))


def test_the_store_holds_no_more_than_allowed_and_no_body() -> None:
    media = [hashed(make_media("image", Grid(1, 4, 6), seed)) for seed in range(20)]
    size = media[0].nbytes
    store = EmbeddingStore(3 * size + 1, 60)
    body = bytearray(b"".join(encode_request(make_request(media=tuple(media)))))
    store.keep_all(decode_request(body))
    body.clear()  # raises BufferError while anything is a view of it
    held = [found for item in media if (found := store.find(str(item.hash))) is not None]
    assert [item.hash for item in held] == [item.hash for item in media[-3:]]
    assert store.bytes == sum(array.nbytes for item in held for array in (item.embeds, *item.deepstack))
    assert all(array.base is None for item in held for array in (item.embeds, *item.deepstack))
    store.find(str(media[17].hash))
    store.keep(media[0])
    assert store.find(str(media[17].hash)) is not None
    assert store.find(str(media[18].hash)) is None
    assert held[1].embeds.size  # a request keeps what it looked up
    assert not EmbeddingStore(size - 1, 60).keep(media[0])


def test_what_nobody_uses_goes_and_names_are_apart() -> None:
    now = [0.0]
    store = EmbeddingStore(2**20, 10, lambda: now[0])
    medium = hashed(make_media("image", Grid(1, 4, 6)))
    store.keep(medium, "a")
    assert store.find(str(medium.hash), "b") is None
    now[0] = 9
    assert store.find(str(medium.hash), "a") is not None
    now[0] = 18.5
    assert store.bytes == medium.nbytes
    now[0] = 19
    assert store.bytes == 0
    assert store.find(str(medium.hash), "a") is None


def test_another_grid_than_held_is_refused() -> None:
    store = EmbeddingStore(2**20, 60)
    medium = hashed(make_media("image", Grid(1, 4, 6)))
    store.keep(medium)
    with pytest.raises(WireError) as refused:
        store.lookup([MediaReference(0, "image", Grid(1, 6, 4), str(medium.hash))])
    assert refused.value.field == "grid_thw.0"


def test_threads_share_it() -> None:
    media = [hashed(make_media("image", Grid(1, 4, 6), seed)) for seed in range(8)]
    store = EmbeddingStore(4 * media[0].nbytes, 60)
    failures: list[BaseException] = []

    def work(order: Sequence[MediaEmbeddings]) -> None:
        try:
            for _ in range(50):
                for item in order:
                    store.keep(item)
                    if (found := store.find(str(item.hash))) is not None:
                        np.testing.assert_array_equal(found.embeds, item.embeds)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(order,)) for order in (media, media[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert store.bytes <= store.max_bytes
