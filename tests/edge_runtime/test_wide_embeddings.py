"""Embeddings beyond float16's 65,504: sent as float32, bfloat16 or packed, said in evidence, held by the server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import InputError, WireError
from qwen3vl_edge.contract.wire.codec import decode_request, encode_request
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.packing import PACKINGS
from qwen3vl_edge.contract.wire.request import Limits, MediaEmbeddings, ModelShape, Sampling, pack_media
from qwen3vl_edge.contract.wire.validate import validate_medium
from qwen3vl_edge.edge_runtime.ask import ask, build_messages
from qwen3vl_edge.edge_runtime.daemon.upstreams.openai_server import image_embeds
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings
from tests.contract.wire.test_packing import ERRORS
from tests.support.wire_bodies import make_media, make_request, with_document


class Scaled:
    """An encoder whose embeddings are `factor` times as large."""

    def __init__(self, encoder: Any, factor: float) -> None:
        self._encoder, self._factor = encoder, np.float32(factor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def run(self, *arguments: Any, **options: Any) -> Embeddings:
        found = self._encoder.run(*arguments, **options)
        return Embeddings(found.embeds.astype(np.float32) * self._factor, found.deepstack)


@pytest.fixture
def edge(bundle: Path) -> Iterator[Edge]:
    with open_edge(bundle, EdgeOptions(wire_dtype="auto")) as edge:
        edge.encoder = Scaled(edge.encoder, 1e5)  # type: ignore[assignment]
        yield edge


def encode(edge: Edge, samples: Path, wire: str) -> Any:
    edge.options = replace(edge.options, wire_dtype=wire)
    return edge.encode(build_messages("What colour?", [str(samples / "colour.png")], []))


@pytest.mark.parametrize(
    ("wire", "server", "sent", "within"),
    [
        ("auto", None, "fp32", 0.0),
        ("auto", "float32", "fp32", 0.0),
        ("auto", "bfloat16", "bf16", 2**-8),
        ("int8", None, "int8", 0.5 / 127 + 2**-10),
        ("fp8", None, "fp8", 2**-4),
        ("int4", None, "int4", ERRORS["int4"]),
    ],
)
def test_what_arrives(edge: Edge, samples: Path, wire: str, server: str | None, sent: str, within: float) -> None:
    exact = encode(edge, samples, "fp32").request.media[0]
    assert np.abs(exact.embeds).max() > 65504
    edge.bandwidth.model_dtype = server
    encoded = encode(edge, samples, wire)
    medium = encoded.request.media[0]
    assert medium.origin["wire"] == sent
    hashed = replace(encoded.request, media=(replace(medium, hash=embedding_hash(medium, "m")),))
    arrived = decode_request(bytes(encode_request(hashed))).media[0]
    assert embedding_hash(arrived, "m") == arrived.hash  # both ends compute with the same numbers
    for array, reference in zip(arrived.arrays, exact.arrays, strict=True):
        largest = np.abs(reference).max(axis=1, keepdims=True)
        assert (np.abs(array.astype(np.float64) - reference) <= within * largest).all()


def test_what_fits_goes_as_float16_by_auto(bundle: Path, samples: Path) -> None:
    with open_edge(bundle, EdgeOptions(wire_dtype="auto")) as edge:
        medium = encode(edge, samples, "auto").request.media[0]
    assert {array.dtype for array in medium.arrays} == {np.dtype(np.float16)}
    assert "wire" not in medium.origin


def test_float16_alone_is_refused_with_what_would_do(edge: Edge, samples: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float16") as refused:
        encode(edge, samples, "fp16")
    assert {"auto", "fp32", "bf16", "int8", "int4"} <= set(
        str(refused.value.remedy).replace(",", " ").strip(".").split()
    )


def test_not_a_number_is_refused_by_auto(edge: Edge, samples: Path) -> None:
    edge.encoder = Scaled(edge.encoder, np.nan)  # type: ignore[assignment]
    with pytest.raises(InputError, match="float16"):
        encode(edge, samples, "auto")


def test_ask_is_answered_and_says_what_went(edge: Edge, server_url: str, samples: Path) -> None:
    messages = build_messages("What colour?", [str(samples / "colour.png")], [])
    answer = ask(edge, server_url, messages, Sampling(max_new_tokens=4))
    assert answer.generated_ids
    assert answer.media[0]["wire"] == "fp32"


def test_a_foreign_server_gets_float32(edge: Edge, samples: Path) -> None:
    import base64
    import io

    medium = encode(edge, samples, "auto").request.media[0]
    sent = base64.b64decode(image_embeds(medium)["image_embeds"]["image_embeds"])
    tensor = torch.load(io.BytesIO(sent), weights_only=True)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), np.concatenate(medium.arrays, axis=1))


def wide_medium() -> Any:
    medium = make_media("image", Grid(1, 4, 4))
    values: NDArray[np.float32] = medium.embeds.astype(np.float32) * np.float32(3e5)
    return replace(medium, embeds=values, deepstack=tuple(level.astype(np.float32) for level in medium.deepstack))


def test_an_older_server_refuses_and_names_the_version() -> None:
    request = make_request(media=(pack_media(wide_medium(), PACKINGS["int8"]),))
    body = bytes(encode_request(request))
    with pytest.raises(WireError, match="wide values"):
        decode_request(with_document(body, version=4))
    narrow = make_request(media=(pack_media(make_media("image", Grid(1, 4, 4)), PACKINGS["int8"]),))
    assert decode_request(with_document(bytes(encode_request(narrow)), version=3)).media  # as older releases do


def test_the_largest_float16_survives_packing() -> None:
    """A scale rounds up, so that the largest code times it is beyond float16: infinity, where it was the largest."""
    rows = np.ones((4, 32), np.float16)
    rows[:, 0] = 65504
    medium = MediaEmbeddings("image", Grid(1, 4, 4), rows, ())
    for name in ("int8", "int4", "fp8"):
        assert np.isfinite(pack_media(medium, PACKINGS[name]).embeds).all()


def test_a_float16_model_refuses_what_it_cannot_hold() -> None:
    medium = wide_medium()
    model = ModelShape("m", medium.embeds.shape[1], len(medium.deepstack), 2, 100, 90, 91)
    validate_medium(medium, model, Limits())
    with pytest.raises(WireError, match="values that the server's model cannot"):
        validate_medium(medium, replace(model, largest=65504.0), Limits())
