"""Compressed bodies: nothing is lost, and nothing larger than the limit is ever made of them."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import httpx
import numpy as np
import pytest
import zstandard

from qwen3vl_edge.contract.errors import InputError, LimitError, WireError
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, encode_request
from qwen3vl_edge.contract.wire.compression import (
    FREE_BYTES,
    MAX_RATIO,
    MAX_WINDOW_BYTES,
    ZSTD,
    compress,
    decompress,
)
from qwen3vl_edge.contract.wire.wire_body import WireBody
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig
from qwen3vl_edge.edge_runtime.daemon.main import serve
from tests.support.http_api.generate import post
from tests.support.server_checkpoint import make_case

LIMIT = 2**20


def test_what_was_compressed_comes_back() -> None:
    body = encode_request(make_case("image and clip").request)
    small = compress(body)
    assert small.headers == {**body.headers, "Content-Length": str(len(bytes(small))), "Content-Encoding": ZSTD}
    assert body.headers == {"Content-Type": CONTENT_TYPE, "Content-Length": str(len(bytes(body)))}
    assert (small.size, body.size) == (len(bytes(small)), len(bytes(body)))
    assert decompress(bytes(small), LIMIT) == bytes(body)


def test_a_bomb_is_refused_before_it_is_large() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(2**30))
    assert len(bomb) < 2**17
    tracemalloc.start()
    with pytest.raises(LimitError, match="once decompressed"):
        decompress(bomb, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    tracemalloc.stop()


def test_exactly_the_limit_is_taken() -> None:
    assert len(decompress(zstandard.ZstdCompressor().compress(bytes(LIMIT)), LIMIT)) == LIMIT
    with pytest.raises(LimitError):
        decompress(zstandard.ZstdCompressor().compress(bytes(LIMIT + 1)), LIMIT)


def test_a_small_body_does_not_become_a_large_one() -> None:
    """32 times as sent, or 4 MiB; in blocks, each claimed before the next is made."""
    library = zstandard.ZstdCompressor()
    assert len(decompress(library.compress(bytes(FREE_BYTES)), 2**30)) == FREE_BYTES
    noise = np.random.default_rng(0).bytes(LIMIT)
    packed = library.compress(noise + bytes(40 * LIMIT))
    with pytest.raises(LimitError, match=f"at most {MAX_RATIO * len(packed)} bytes, 32 times as sent.*uncompressed"):
        decompress(packed, 2**30)
    blocks: list[int] = []

    def claim(size: int) -> None:
        blocks.append(size)
        if sum(blocks) > 2 * LIMIT:
            raise LimitError("no room")

    with pytest.raises(LimitError, match="no room"):
        decompress(library.compress(noise * 8), 2**30, claim)
    assert max(blocks) <= LIMIT
    assert sum(blocks) <= 3 * LIMIT


def test_a_body_that_servers_would_refuse_to_expand_is_sent_as_it_is() -> None:
    """A device never compresses what no server takes."""
    empty = WireBody((memoryview(bytes(FREE_BYTES + 1)),), CONTENT_TYPE)
    assert compress(empty) is empty
    small = compress(WireBody((memoryview(bytes(FREE_BYTES)),), CONTENT_TYPE))
    assert small.encoding == ZSTD
    assert len(decompress(bytes(small), 2**30)) == FREE_BYTES


def wide_window() -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    noise = np.random.default_rng(0).bytes(2 * MAX_WINDOW_BYTES)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(noise) + compressor.flush()


@pytest.mark.parametrize("body", [b"", b"not zstd at all", b"\x28\xb5\x2f\xfd" + b"\xff" * 40, wide_window()])
def test_what_does_not_decompress_is_named(body: bytes) -> None:
    if not body:
        assert decompress(body, LIMIT) == b""  # an empty body, which the wire refuses by its own name
        return
    with pytest.raises(WireError, match="cannot be decompressed"):
        decompress(body, 64 * LIMIT)


@pytest.mark.parametrize(
    ("encoding", "body", "status", "field"),
    [
        ("gzip", b"x", 415, "Content-Encoding"),
        ("zstd, zstd", b"x", 415, "Content-Encoding"),
        ("zstd", b"no zstd", 400, "body"),
        ("zstd", zstandard.ZstdCompressor().compress(b""), 400, "header"),
    ],
)
def test_a_server_names_what_is_wrong(server_url: str, encoding: str, body: bytes, status: int, field: str) -> None:
    answer = post(server_url, body, {"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, field)


def test_a_bomb_over_http_is_413(server_url: str) -> None:
    answer = post(server_url, zstandard.ZstdCompressor().compress(bytes(2**29)), {"Content-Encoding": "zstd"})
    assert answer.status_code == 413
    assert httpx.get(f"{server_url}/readyz").status_code == 200


def test_a_daemon_without_the_library_does_not_start(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    config = DaemonConfig(bundle, port=0, wire_zstd=True)
    with pytest.raises(InputError, match=r"zstandard is not installed.*pip install zstandard"):
        serve(config, lambda: config)
