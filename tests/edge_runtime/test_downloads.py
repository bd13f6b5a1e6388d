"""What a download may cost: bytes as they come, never decoded, within one deadline, ended when nobody waits."""

from __future__ import annotations

import asyncio
import gzip
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.edge_runtime.inputs.sources import clips
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy, MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.clips import open_clip
from qwen3vl_edge.edge_runtime.inputs.sources.download import download, fetch
from qwen3vl_edge.edge_runtime.inputs.sources.fetch import open_sources
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget, MediaLimits
from tests.support.waiting import until

HEAD = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(gzip.compress(bytes(2**24)))
Send = Callable[[bytes], None]


class Web:
    """A server that answers with whatever bytes `answers` has for the path; `open` counts its connections."""

    def __init__(self, answers: dict[str, Callable[[Send], None]]) -> None:
        web = self
        self.heads: list[str] = []
        self.open = 0

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += self.rfile.readline()
                web.heads.append(head.decode())
                web.open += 1
                try:
                    answers[head.split()[1].decode()](self.wfile.write)
                except OSError:
                    pass  # the client closed the connection
                finally:
                    web.open -= 1

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def source(self, path: str) -> MediaSource:
        return MediaSource("image", f"http://127.0.0.1:{self.server.server_address[1]}{path}", "image_url")


def drip(send: Send) -> None:
    """A byte at a time, as long as the other side takes them."""
    send(HEAD + b"Content-Length: 1000000\r\n\r\n")
    while True:
        send(b"x")
        threading.Event().wait(0.02)


def heads_without_end(send: Send) -> None:
    send(HEAD)
    while True:
        send(b"X-More: " + b"x" * 1000 + b"\r\n")


def informed_without_end(send: Send) -> None:
    while True:
        send(b"HTTP/1.1 103 Early Hints\r\n\r\n")


@pytest.fixture
def web() -> Iterator[Web]:
    sent: dict[str, Callable[[Send], None]] = {
        "/bomb": lambda send: send(
            HEAD + b"Content-Encoding: gzip, gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(BOMB), BOMB)
        ),
        "/identity": lambda send: send(HEAD + b"Content-Encoding: identity\r\nContent-Length: 4\r\n\r\nfour"),
        "/gzipped-in-secret": lambda send: send(HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(BOMB), BOMB)),
        "/announced": lambda send: send(HEAD + b"Content-Length: 99999999999\r\n\r\n"),
        "/drip": drip,
        "/heads": heads_without_end,
        "/informed": informed_without_end,
    }
    served = Web(sent)
    yield served
    served.server.shutdown()
    served.server.server_close()


def policy(**options: float) -> AccessPolicy:
    return AccessPolicy(private_addresses=True, **options)  # type: ignore[arg-type]


def test_nothing_is_decoded(web: Web) -> None:
    with pytest.raises(InputError, match="is encoded: expected no Content-Encoding"):
        download(web.source("/bomb"), policy())
    assert "accept-encoding: identity" in web.heads[0].lower()
    assert download(web.source("/identity"), policy()) == b"four"
    assert download(web.source("/gzipped-in-secret"), policy()) == BOMB


def test_what_is_announced_too_large_is_not_waited_for(web: Web) -> None:
    with pytest.raises(LimitError, match="too large"):
        download(web.source("/announced"), policy())


@pytest.mark.parametrize("path", ["/drip", "/informed"])
def test_one_deadline_covers_all(web: Web, path: str) -> None:
    """Each read succeeds well within it."""
    with pytest.raises(InputError, match=r"came too slowly: expected all of it within 0.3 s \(fetch_timeout_s\)"):
        download(web.source(path), policy(timeout_s=0.3))
    until(lambda: not web.open)


def test_heads_are_bounded(web: Web) -> None:
    with pytest.raises(InputError, match="cannot be fetched"):
        download(web.source("/heads"), policy())
    until(lambda: not web.open)


def test_it_ends_when_nobody_waits(web: Web) -> None:
    async def leave() -> None:
        fetching = asyncio.create_task(fetch(web.source("/drip"), policy(timeout_s=3600)))
        while not web.open:
            await asyncio.sleep(0.01)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching

    asyncio.run(leave())
    until(lambda: not web.open)


def test_each_piece_is_paid_for_before_it_is_kept(web: Web) -> None:
    async def refuse(piece: bytes) -> None:
        raise LimitError("too much in flight")

    with pytest.raises(LimitError, match="in flight"):
        asyncio.run(fetch(web.source("/identity"), policy(), refuse))


def test_one_that_fails_ends_the_others(web: Web, tmp_path: Path) -> None:
    async def free(piece: bytes) -> None:
        pass

    sources = [web.source("/drip"), web.source("/bomb")]
    with pytest.raises(InputError, match="is encoded"):
        asyncio.run(open_sources(sources, policy(timeout_s=3600), MediaLimits(), tmp_path, free))
    until(lambda: not web.open)


def test_a_clip_by_url_is_downloaded_within_the_policy(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library left URLs of clips to the video reader, which knows no policy."""
    url = web.source("/identity").reference
    with open_clip(url, MediaBudget()) as clip:
        assert isinstance(clip, clips.ClipFile)
        assert clip.path.read_bytes() == b"four"
    assert not clip.path.exists()
    monkeypatch.setattr(clips, "UNRESTRICTED", policy(max_bytes=3))
    with pytest.raises(LimitError, match="too large"), open_clip(url, MediaBudget()):
        pass
