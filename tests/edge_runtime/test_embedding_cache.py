"""Embeddings on disk: the same to the bit, never wrong, never more than allowed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats import atomic
from qwen3vl_edge.edge_runtime.ask import build_messages
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.embedding_cache import EmbeddingCache
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions, Embeddings
from tests.support.instructions import instructions

GRID = Grid(1, 4, 4)


def pixels(seed: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).standard_normal((16, 8), dtype=np.float32)


def embeddings(seed: int) -> Embeddings:
    rows = np.random.default_rng(seed).standard_normal((3, 4, 8)).astype(np.float16)
    return Embeddings(rows[0], (rows[1], rows[2]))


def equal(one: Embeddings, other: Embeddings) -> bool:
    return all(
        np.array_equal(a, b) and a.dtype == b.dtype
        for a, b in zip((one.embeds, *one.deepstack), (other.embeds, *other.deepstack), strict=True)
    )


def test_what_was_put_comes_back_also_after_a_restart(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache", 2**20, "a")
    key = cache.key(GRID, pixels(0))
    assert cache.get(key) is None
    cache.put(key, embeddings(0))
    for opened in (cache, EmbeddingCache(tmp_path / "cache", 2**20, "a")):
        found = opened.get(key)
        assert found is not None
        assert equal(found, embeddings(0))
    assert (cache.hits, cache.misses) == (1, 1)


def test_the_key_is_all_that_decides(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, 2**20, "bundle a")
    other = EmbeddingCache(tmp_path, 2**20, "bundle b")
    one = pixels(0)
    bit = one.copy()
    bit.view(np.uint32)[3, 3] ^= 1
    keys = {cache.key(GRID, one), cache.key(Grid(1, 2, 8), one), cache.key(GRID, bit), other.key(GRID, one)}
    assert len(keys) == 4


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    cache = EmbeddingCache(tmp_path, 2**20, "a")
    key = cache.key(GRID, pixels(0))
    cache.put(key, embeddings(0))
    file = next(tmp_path.iterdir())
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes({"cut": content[:-7], "flip": content, "empty": b""}[damage])
    assert cache.get(key) is None
    assert cache.bytes == 0
    assert not list(tmp_path.iterdir())
    cache.put(key, embeddings(0))
    assert cache.get(key) is not None


def test_the_longest_unused_go_first_and_the_limit_holds(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, 2**20, "a")
    cache.put("0", embeddings(0))
    size = cache.bytes
    small = EmbeddingCache(tmp_path, 3 * size, "a")
    for name in ("1", "2"):
        small.put(name, embeddings(int(name)))
    assert small.get("0") is not None  # used: "1" is the oldest now
    small.put("3", embeddings(3))
    assert small.get("1") is None
    assert all(small.get(name) is not None for name in ("0", "2", "3"))
    assert small.bytes == sum(file.stat().st_size for file in tmp_path.iterdir()) <= 3 * size
    assert EmbeddingCache(tmp_path, size, "a").bytes <= size  # a lower limit holds from the start
    tiny = EmbeddingCache(tmp_path, 10, "a")
    tiny.put("4", embeddings(4))
    assert tiny.bytes == 0


def test_a_full_disk_costs_the_entry_and_not_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EmbeddingCache(tmp_path, 2**20, "a")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_bytes", full)
    cache.put("0", embeddings(0))
    assert cache.get("0") is None


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        EmbeddingCache(tmp_path / "file", 2**20, "a")


def test_the_edge_encodes_no_picture_twice(bundle: Path, samples: Path, tmp_path: Path) -> None:
    options = EdgeOptions(backend_options=BackendOptions(precision="fp32"), cache=tmp_path / "cache")
    messages = build_messages("What colour?", [str(samples / "colour.png"), str(samples / "colour.png")], [])
    with open_edge(bundle, replace(options, cache=None)) as edge:
        expected = edge.encode(messages).request.media
    with open_edge(bundle, options) as edge:
        first = edge.encode(messages).request.media
        again = edge.encode(messages).request.media
    assert [item.origin.get("cached", False) for item in (*first, *again)] == [False, True, True, True]
    for media in (first, again):
        for item, fresh in zip(media, expected, strict=True):
            np.testing.assert_array_equal(item.embeds, fresh.embeds)
            assert all(np.array_equal(a, b) for a, b in zip(item.deepstack, fresh.deepstack, strict=True))
    half = replace(options, backend_options=BackendOptions(precision="fp16"))
    with open_edge(bundle, half) as edge:  # another precision's embeddings are others
        assert not edge.encode(messages).request.media[0].origin.get("cached", False)


def test_two_daemons_may_share_a_folder(tmp_path: Path) -> None:
    one, other = (EmbeddingCache(tmp_path, 2**20, "a") for _ in range(2))
    one.put("0", embeddings(0))
    found = other.get("0")
    assert found is not None
    assert equal(found, embeddings(0))
    small = EmbeddingCache(tmp_path, 2 * one.bytes, "a")
    one.put("1", embeddings(1))
    small.put("2", embeddings(2))  # makes room among what both wrote
    assert len(list(tmp_path.iterdir())) == 2
    assert one.get("2") is not None


def test_what_a_killed_daemon_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".0.embeds.old").write_bytes(b"x")
    os.utime(tmp_path / ".0.embeds.old", (0, 0))
    (tmp_path / ".1.embeds.new").write_bytes(b"x")  # perhaps under way in another daemon
    EmbeddingCache(tmp_path, 2**20, "a")
    assert [path.name for path in tmp_path.iterdir()] == [".1.embeds.new"]


def test_a_file_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    """A real limit of the kernel's, in a process of its own."""
    code = (
        "import resource, sys, pathlib, numpy as np\n"
        "from qwen3vl_edge.edge_runtime.encoder.embedding_cache import EmbeddingCache\n"
        "from qwen3vl_edge.edge_runtime.encoder.protocol import Embeddings\n"
        "cache = EmbeddingCache(pathlib.Path(sys.argv[1]), 2**20, 'a')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "cache.put('0', Embeddings(np.zeros((64, 64), np.float16), ()))\n"
        "assert cache.get('0') is None and cache.bytes == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_entry_under_another_name_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EmbeddingCache(tmp_path, 2**20, "a")
    mine, others = cache.key(GRID, pixels(0)), cache.key(GRID, pixels(1))
    cache.put(mine, embeddings(0))
    (tmp_path / f"{mine}.embeds").rename(tmp_path / f"{others}.embeds")
    assert cache.get(others) is None
    assert others in caplog.text
    assert not list(tmp_path.iterdir())


def test_an_entry_of_an_earlier_release_is_made_again_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was the sha256 of the array alone, then the array."""
    cache = EmbeddingCache(tmp_path, 2**20, "a")
    key = cache.key(GRID, pixels(0))
    cache.put(key, embeddings(0))
    path = tmp_path / f"{key}.embeds"
    body = path.read_bytes()[32:]
    path.write_bytes(hashlib.sha256(body).digest() + body)
    assert cache.get(key) is None
    assert not path.exists()
    assert not caplog.text


def fill(folder: Path, count: int) -> EmbeddingCache:
    """A cache that is full of so many small files."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:064x}.embeds").write_bytes(bytes(2000))
    return EmbeddingCache(folder, count * 2000, "a")


def test_a_put_costs_the_same_however_many_files_there_are(tmp_path: Path) -> None:
    few, many = fill(tmp_path / "few", 200), fill(tmp_path / "many", 4000)
    costs = [instructions(lambda: cache.put("new", embeddings(0))) for cache in (few, many)]  # noqa: B023
    assert costs[1] < 1.1 * costs[0]
    assert many.bytes == sum(file.stat().st_size for file in many.folder.iterdir()) <= many.max_bytes


def test_daemons_that_share_a_folder_see_what_the_others_do(tmp_path: Path) -> None:
    """More files than a put looks at; the limit is exceeded by a thirty-second at most, for the one other daemon."""
    size = 32 + 128 + 3 * 4 * 8 * 2  # digest, numpy's header, rows
    limit = 200 * size
    one, other = (EmbeddingCache(tmp_path, limit, "a") for _ in range(2))
    most = 0
    for number in range(1000):
        for name, cache in (("one", one), ("other", other)):
            cache.put(f"{name}{number}", embeddings(0))
        if number % 10 == 0:
            most = max(most, sum(file.stat().st_size for file in tmp_path.iterdir()))
    assert limit * 0.9 < most <= limit * (1 + 1 / 32) + size
    for number in range(20):  # the other one is silent now
        one.put(f"last{number}", embeddings(0))
    files = {file.stem: file.stat().st_size for file in tmp_path.iterdir()}
    assert one.bytes == sum(files.values()) <= limit
    assert {f"last{number}" for number in range(20)} <= set(files)
    assert min(int(name.removeprefix("other")) for name in files if name.startswith("other")) > 850, "the oldest went"
    for file in tmp_path.glob("one*"):
        file.unlink()
    for number in range(20):
        other.put(f"more{number}", embeddings(0))
    assert other.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache", 2**20, "a")
    cache.put("0", embeddings(0))
    shutil.rmtree(tmp_path / "cache")
    cache.put("1", embeddings(1))
    assert cache.get("1") is not None
