"""Embeddings on disk: what a restart finds again, and what is never believed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.wire.codec import encode_medium
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.request import MediaEmbeddings
from qwen3vl_edge.server.embeddings.disk import EmbeddingDisk, _File
from qwen3vl_edge.server.embeddings.store import EmbeddingStore
from qwen3vl_edge.server.engines.transformers.engine import TransformersEngine
from tests.support.http_api.app import BY_HASH, CASE, PUT, URL, App, reference_engine
from tests.support.server_checkpoint import oracle
from tests.support.wire_bodies import make_media

MODEL = "ab" * 32


def hashed(seed: int, model: str = MODEL) -> MediaEmbeddings:
    medium = make_media("image", Grid(1, 4, 6), seed)
    return replace(medium, hash=embedding_hash(medium, model))


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with reference_engine() as engine:
        yield engine


class Disks:
    """Opens the same folder again and again, each time as a new server would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.model, self._open = folder, 1e9, MODEL, None

    def __call__(self, max_bytes: int = 2**20, keep_s: float = 60) -> EmbeddingDisk:
        self.close()
        self._open = EmbeddingDisk(self.folder, max_bytes, keep_s, lambda: self.model, lambda: self.now)
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
        self._open: EmbeddingDisk | None = None


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    opened = Disks(tmp_path / "held")
    yield opened
    opened.close()


def files(disks: Disks) -> list[Path]:
    return sorted(disks.folder.glob("*/*.held"))


def same(found: MediaEmbeddings | None, wanted: MediaEmbeddings) -> bool:
    if found is None:
        return False
    pairs = zip((found.embeds, *found.deepstack), (wanted.embeds, *wanted.deepstack), strict=True)
    return found.grid == wanted.grid and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_a_restart_finds_it_and_names_are_apart(disks: Disks) -> None:
    medium, store = hashed(0), EmbeddingStore(2**20, 60, disk=disks())
    assert store.keep(medium, "../first")
    again = EmbeddingStore(2**20, 60, disk=disks())
    assert same(again.find(str(medium.hash), "../first"), medium)
    assert again.find(str(medium.hash), "second") is None
    assert again.find(str(medium.hash), "") is None
    assert again.disk is not None
    assert again.disk.hits == 1
    assert same(again.find(str(medium.hash), "../first"), medium)
    assert again.disk.hits == 1, "from memory now"
    (path,) = files(disks)
    assert path.parent.parent == disks.folder
    assert "first" not in str(path.parent.name)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert again.disk.bytes == path.stat().st_size


def test_a_file_in_another_clients_folder_is_not_found(disks: Disks) -> None:
    """Its content is as its hash says; only the folder is wrong."""
    medium, other = hashed(0), hashed(1)
    disk = disks()
    disk.keep(medium, "a")
    disk.keep(other, "b")
    name = f"{medium.hash}.held"
    (path,) = disks.folder.glob(f"*/{name}")
    (folder,) = {file.parent for file in files(disks)} - {path.parent}
    path.rename(folder / name)
    disk = disks()
    assert disk.find(str(medium.hash), "b") is None
    assert (disk.damaged, len(files(disks))) == (1, 1)
    assert same(disk.find(str(other.hash), "b"), other)


def test_files_of_an_earlier_release_are_removed(disks: Disks) -> None:
    disks().keep(hashed(0), "a")
    (path,) = files(disks)
    earlier = path.with_suffix(".embeds")
    earlier.write_bytes(path.read_bytes()[:-32])
    assert disks().bytes == path.stat().st_size
    assert not earlier.exists()


def test_files_that_expire_at_once_delay_no_request(disks: Disks) -> None:
    many, few = 300, 100
    disk = disks()
    for number in range(many):
        disk._files["f" * 64, f"{number:064x}"] = _File(1, disks.now)
    disks.now += 61
    assert disk.find(f"{many - 1:064x}", "") is None
    assert len(disk._files) > many - few
    store = EmbeddingStore(2**20, 60, lambda: disks.now)
    for number in range(many):
        store.keep(hashed(number), "")
    disks.now += 61
    assert store.find(str(hashed(many - 1).hash)) is None
    assert len(store._entries) > many - few
    while store.bytes or disk.bytes > 0:
        pass


def damage(how: str, content: bytearray) -> bytes:
    if how == "cut short":
        return bytes(content[:-5])
    if how == "empty":
        return b""
    if how == "pickle":
        return b"\x80\x04\x95cos\nsystem\n."
    if how == "another's":
        return bytes(encode_medium(hashed(9), MODEL))
    if how == "same name, other tensors":
        other = replace(hashed(9), hash=hashed(0).hash)
        return bytes(encode_medium(other, MODEL))
    content[len(content) // 2] ^= 1
    return bytes(content)


@pytest.mark.parametrize("how", ["cut short", "empty", "pickle", "another's", "same name, other tensors", "one bit"])
def test_a_damaged_file_is_dropped_and_counted(disks: Disks, how: str) -> None:
    disks().keep(medium := hashed(0), "a")
    (path,) = files(disks)
    path.write_bytes(damage(how, bytearray(path.read_bytes())))
    disk = disks()
    assert disk.find(str(medium.hash), "a") is None
    assert (disk.damaged, disk.bytes, files(disks)) == (1, 0, [])
    assert disk.find(str(medium.hash), "a") is None
    assert disk.damaged == 1
    disk.keep(medium, "a")
    assert same(disk.find(str(medium.hash), "a"), medium)


def test_to_describe_a_file_its_header_alone_is_read(disks: Disks) -> None:
    """Of a file whose tensors were altered the description is the same; who wants them gets nothing."""
    medium = hashed(1)
    disks().keep(medium, "a")
    (path,) = disks.folder.glob("*/*.held")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    disk = disks()
    assert medium.hash is not None
    described = disk.describe(medium.hash, "a")
    assert described is not None
    assert (described.grid, described.embeds.shape, described.nbytes) == (
        medium.grid,
        medium.embeds.shape,
        medium.nbytes,
    )
    assert disk.describe(medium.hash, "b") is None
    assert disk.find(medium.hash, "a") is None
    assert disk.describe(medium.hash, "a") is None


def test_another_models_are_never_found(disks: Disks) -> None:
    medium = hashed(0)
    disks().keep(medium, "a")
    disks.model = "cd" * 32
    assert disks().find(str(medium.hash), "a") is None
    disks.model = MODEL
    assert same(disks().find(str(medium.hash), "a"), medium)


def test_its_size_and_age_are_bounded_through_restarts(disks: Disks) -> None:
    media = [hashed(seed) for seed in range(6)]
    size = encode_medium(media[0], MODEL).size + 32  # a sha256
    disk = disks(3 * size, 60)
    for medium in media[:4]:
        disks.now += 1
        disk.keep(medium, "a")
    assert [disk.find(str(item.hash), "a") is not None for item in media[:4]] == [False, True, True, True]
    assert disk.bytes == sum(path.stat().st_size for path in files(disks)) == 3 * size
    disks.now += 1
    disk.find(str(media[1].hash), "a")
    disk = disks(3 * size, 60)
    disk.keep(media[4], "b")
    assert disk.find(str(media[1].hash), "a") is not None, "used last"
    assert disk.find(str(media[2].hash), "a") is None
    assert disks(2 * size, 60).bytes == 2 * size, "a smaller limit holds at once"
    disks.now += 59
    assert disks(3 * size, 60).bytes == 2 * size
    disks.now += 2
    assert disks(3 * size, 60).bytes == 0
    assert not files(disks)
    small = disks(size - 1, 60)
    small.keep(media[5], "a")
    assert small.bytes == 0


def test_one_server_at_a_time_and_what_a_killed_one_left(disks: Disks) -> None:
    disks().keep(hashed(0), "a")
    with pytest.raises(InputError, match="another server") as refused:
        EmbeddingDisk(disks.folder, 2**20, 60, lambda: MODEL)
    assert refused.value.field == "hold_folder"
    (path,) = files(disks)
    torn = path.with_name(f".{path.name}.x1y2")
    torn.write_bytes(b"half")
    (disks.folder / "README").write_text("not ours")
    (path.parent / "notes.held").write_text("not ours")
    disk = disks()
    assert not torn.exists()
    assert (disks.folder / "README").exists()
    assert disk.bytes == path.stat().st_size
    with pytest.raises(InputError, match="cannot be used"):
        EmbeddingDisk(path / "below a file", 2**20, 60, lambda: MODEL)


def test_a_disk_that_fails_costs_no_request(disks: Disks, caplog: pytest.LogCaptureFixture) -> None:
    disk = disks()
    store = EmbeddingStore(2**20, 60, disk=disk)
    disks.folder.rename(disks.folder.with_name("gone"))
    assert store.keep(hashed(0), "a")
    assert "cannot be held" in caplog.text
    assert store.find(str(hashed(0).hash), "a") is not None
    assert disk.bytes == 0


def test_threads_share_it(disks: Disks) -> None:
    media = [hashed(seed) for seed in range(6)]
    disk = disks(3 * encode_medium(media[0], MODEL).size, 60)
    failures: list[BaseException] = []

    def work(order: list[MediaEmbeddings]) -> None:
        try:
            for _ in range(15):
                for item in order:
                    disk.keep(item, "a")
                    found = disk.find(str(item.hash), "a")
                    assert found is None or same(found, item)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(order,)) for order in (media, media[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert disk.damaged == 0
    assert disk.bytes <= disk.max_bytes
    assert disk.bytes == sum(path.stat().st_size for path in files(disks))


def test_a_server_answers_by_hash_after_a_restart(engine: TransformersEngine, tmp_path: Path) -> None:
    options: dict[str, Any] = {"hold_folder": tmp_path / "held"}
    first = App(engine, **options)
    assert first("PUT", URL, content=PUT).status_code == 201
    first.state.close()
    second = App(engine, **options)
    assert second("HEAD", URL).status_code == 200
    answer = second("POST", "/v1/generate", content=BY_HASH)
    assert answer.json()["generated_ids"] == oracle().greedy(CASE, 4)
    assert "qwen3vl_edge_embedding_disk_hits_total 1.0" in second("GET", "/metrics").text
    second.state.close()
    (path,) = (tmp_path / "held").glob("*/*.held")
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    third = App(engine, **options)
    refused = third("POST", "/v1/generate", content=BY_HASH)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "embeddings_not_held")
    assert "qwen3vl_edge_embedding_disk_corrupt_files_total 1.0" in third("GET", "/metrics").text
    third.state.close()
