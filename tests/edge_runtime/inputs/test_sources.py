"""Where pictures and clips may come from: folders, addresses, redirects, sizes, and the forms of a reference."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.contract.formats.data_uri import parse_data_uri
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.cameras.source import frames
from qwen3vl_edge.edge_runtime.inputs.sources import download
from qwen3vl_edge.edge_runtime.inputs.sources.access import UNRESTRICTED, AccessPolicy, MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.clips import ClipFile, clip_file, open_clip
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import open_image
from qwen3vl_edge.edge_runtime.inputs.sources.read import file_path, read_source
from tests.support.video_files import lossless_clip

PRIVATE = AccessPolicy(private_addresses=True)


class Web:
    """A server of one picture, and of redirects; `requests` are the headers that it received."""

    def __init__(self, picture: bytes) -> None:
        web = self
        self.requests: list[dict[str, str]] = []
        self.released = threading.Event()
        self.elsewhere = "/ok.png"

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests.append(dict(self.headers))
                redirects = {
                    "/away": "http://192.168.0.1/inside.png",
                    "/loop": "/loop",
                    "/twice": "/once",
                    "/once": "/ok.png",
                    "/ftp": "ftp://localhost/ok.png",
                    "/endless": "/ok.png",
                    "/elsewhere": web.elsewhere,
                }
                self.send_response(302 if self.path in redirects else 200 if self.path == "/ok.png" else 404)
                if self.path in redirects:
                    self.send_header("Location", redirects[self.path])
                    if self.path == "/endless":
                        self.send_header("Content-Length", str(2**40))
                self.end_headers()
                if self.path == "/endless":
                    self.wfile.write(b"x")
                    web.released.wait(60)
                if self.path == "/ok.png":
                    self.wfile.write(picture)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web(samples: Path) -> Iterator[Web]:
    server = Web((samples / "colour.png").read_bytes())
    yield server
    server.close()


@pytest.fixture
def localhost_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """localhost stands for a public host; where it redirects to does not."""
    real = download.is_public
    monkeypatch.setattr(download, "is_public", lambda address: address in ("127.0.0.1", "::1") or real(address))


def test_a_link_out_of_an_allowed_folder_leads_out_of_it(tmp_path: Path, samples: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "real.png").write_bytes((samples / "colour.png").read_bytes())
    (allowed / "link.png").symlink_to(samples / "colour.png")
    access = AccessPolicy(folders=(allowed,))
    assert open_image(str(allowed / "real.png"), access).size
    assert open_image(str(allowed / "link.png")).size  # the library's own policy has no folders
    for path in (allowed / "link.png", allowed / ".." / "allowed" / "link.png", allowed, allowed / "none.png"):
        with pytest.raises(InputError, match="allowed folder"):
            open_image(str(path), access)
    with pytest.raises(LimitError, match="too large"):
        open_image(str(allowed / "real.png"), AccessPolicy(folders=(allowed,), max_bytes=100))


def test_urls_are_fetched_where_allowed(web: Web, samples: Path) -> None:
    for access in (PRIVATE, UNRESTRICTED):
        assert open_image(f"{web.base}/ok.png", access).size == Image.open(samples / "colour.png").size
        # the name is sent, to the address that was checked
        assert web.requests[-1]["Host"] == f"localhost:{web.server.server_port}"
        with pytest.raises(InputError, match="404"):
            open_image(f"{web.base}/none.png", access)
    for access in (
        AccessPolicy(private_addresses=True, max_bytes=100),
        AccessPolicy(private_addresses=True, proxies=True, max_bytes=100),
    ):
        with pytest.raises(LimitError, match="too large"):
            open_image(f"{web.base}/ok.png", access)
    with pytest.raises(InputError, match="private"):
        open_image(f"{web.base}/ok.png", AccessPolicy())


@pytest.mark.usefixtures("localhost_is_public")
def test_a_redirect_is_checked_again(web: Web) -> None:
    assert open_image(f"{web.base}/twice", AccessPolicy()).size
    assert open_image(f"{web.base}/endless", AccessPolicy()).size  # a redirect's body is not read
    refusals = {"away": "private", "loop": "redirects too often: expected at most 5", "ftp": "not a web address"}
    for path, words in refusals.items():
        with pytest.raises(InputError, match=words):
            open_image(f"{web.base}/{path}", AccessPolicy())


@pytest.mark.usefixtures("localhost_is_public")
def test_a_name_that_changes_its_address_gains_nothing(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: whatever the name resolves to later, the connection goes to the address that was checked."""
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", web.server.server_port))]]
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **named: Any) -> Any:
        if host == "rebound.example":
            assert answers, "the name is resolved a second time"
            return answers.pop()
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert open_image(f"http://rebound.example:{web.server.server_port}/ok.png", AccessPolicy()).size
    assert web.requests[-1]["Host"].startswith("rebound.example")


@pytest.mark.parametrize("inside", ["10.0.0.1", "127.0.0.2", "::1", "fd00::1", "169.254.169.254", "224.0.0.1"])
def test_a_name_with_one_private_address_is_refused(inside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [(0, 0, 0, "", (address, 80)) for address in ("93.184.215.14", inside)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    with pytest.raises(InputError, match="private"):
        open_image("http://mixed.example/a.png", AccessPolicy())


def test_credentials_of_a_url_are_used_and_never_repeated(web: Web) -> None:
    basic = "Basic " + base64.b64encode(b"user:secret").decode()
    host = f"user:secret@localhost:{web.server.server_port}"
    for access in (PRIVATE, UNRESTRICTED):
        open_image(f"http://{host}/ok.png", access)
        assert web.requests[-1]["Authorization"] == basic
        open_image(f"http://{host}/twice", access)  # a path of the same server
        assert web.requests[-1]["Authorization"] == basic
        for url in (f"http://{host}/none.png?key=hidden", f"HTTP://{host}/loop?key=hidden#key", f"http://{host}/away"):
            if access is UNRESTRICTED and url.endswith("away"):
                continue
            with pytest.raises(InputError) as caught:
                open_image(url, access)
            words = str(caught.value)
            assert f"localhost:{web.server.server_port}/" in words
            assert "secret" not in words
            assert "hidden" not in words


def test_credentials_stay_with_the_server_that_they_are_for(web: Web, samples: Path) -> None:
    other = Web((samples / "colour.png").read_bytes())
    try:
        web.elsewhere = f"{other.base}/ok.png"
        for access in (PRIVATE, UNRESTRICTED):
            open_image(f"http://user:secret@localhost:{web.server.server_port}/elsewhere", access)
            assert "Authorization" not in other.requests[-1]
    finally:
        other.close()


@pytest.mark.parametrize(
    ("reference", "label"),
    [
        ("http://user:secret@example.org:8080/a/b.png?X-Amz-Signature=1#x", "http://example.org:8080/a/b.png?…"),
        ("https://token@example.org", "https://example.org"),
        ("https://example.org/a@b.png", "https://example.org/a@b.png"),
        ("HTTPS://u:p@example.org/a", "HTTPS://example.org/a"),
        ("/a/b?c", "/a/b?c"),
    ],
)
def test_what_is_shown_of_a_reference(reference: str, label: str) -> None:
    assert MediaSource("image", reference, "image").label == label


def test_a_limit_names_its_setting_and_what_was_sent() -> None:
    source = MediaSource("image", "data:image/png;base64," + "A" * 16, "image")
    with pytest.raises(LimitError, match=r"at most 7 bytes \(max_media_mib\), got 12"):
        read_source(source, AccessPolicy(max_bytes=7, setting="max_media_mib"))


def test_a_proxy_cannot_go_with_checked_addresses() -> None:
    with pytest.raises(ValueError, match="proxy"):
        AccessPolicy(proxies=True)


def test_a_scheme_that_is_not_allowed_is_refused(samples: Path) -> None:
    access = AccessPolicy(schemes=frozenset({"data"}), folders=None, private_addresses=True)
    for reference in (str(samples / "colour.png"), "http://127.0.0.1:9/a.png", f"file://{samples}/colour.png"):
        with pytest.raises(InputError, match="scheme that is not allowed"):
            open_image(reference, access)


def test_a_file_url_may_be_percent_encoded(tmp_path: Path) -> None:
    for name in ("a b.png", "100%.png", "a#1.png", "a?1.png"):
        (tmp_path / name).touch()
        assert file_path(f"file://{tmp_path}/{name}") == tmp_path / name
    for form in ("file://", "file:", "FILE://", "File://localhost"):  # RFC 8089, 2 and appendix B
        assert file_path(f"{form}{tmp_path}/a%20b.png") == tmp_path / "a b.png"
        assert file_path(f"{form}{tmp_path}/a%231.png") == tmp_path / "a#1.png"
    assert file_path(f"{tmp_path}/a%20b.png") == tmp_path / "a%20b.png"


def test_escapes_at_every_door(tmp_path: Path, samples: Path) -> None:
    picture = tmp_path / "a b.png"
    picture.write_bytes((samples / "colour.png").read_bytes())
    url = f"file://{tmp_path}/a%20b.png"
    assert open_image(url).size
    assert open_image(url, AccessPolicy(folders=(tmp_path,))).size
    with pytest.raises(InputError, match="allowed folder"):  # escapes lead out of no folder
        open_image(f"file://{tmp_path}/x/%2e%2e/%2e%2e/a.png", AccessPolicy(folders=(tmp_path,)))
    lossless_clip(tmp_path / "a b.mp4", 4)
    with open_clip(f"file://{tmp_path}/a%20b.mp4", MediaBudget()) as clip:
        assert isinstance(clip, ClipFile)
        assert clip.path == tmp_path / "a b.mp4"
    assert clip_file(f"file://{tmp_path}/a%20b.mp4", AccessPolicy(folders=(tmp_path,)), tmp_path).name == "a b.mp4"
    seen: list[float] = []
    config = CameraConfig("it", f"file://{tmp_path}/a%20b.mp4", loop=False)
    list(frames(config, lambda second: not seen.append(second), threading.Event()))
    assert len(seen) >= 3


def test_base64_as_encoders_write_it(samples: Path) -> None:
    """Lines of 76 characters (RFC 2045, 6.8), scheme and type in any case (RFC 3986, 3.1; RFC 2045, 5.1)."""
    data = (samples / "colour.png").read_bytes()
    lines = base64.encodebytes(data).decode()
    plain = base64.b64encode(data).decode()
    size = open_image(f"data:image/png;base64,{plain}").size
    for uri in (
        f"data:image/png;base64,{lines}",
        f"data:image/png;base64,\r\n{lines.replace(chr(10), chr(13) + chr(10))}",
        f"DATA:IMAGE/PNG;BASE64,{plain}",
        f"Data:Image/Png;charset=utf-8;Base64,{plain}",
    ):
        assert open_image(uri).size == size
        assert open_image(uri, AccessPolicy(max_bytes=len(data))).size == size
        with pytest.raises(LimitError):
            open_image(uri, AccessPolicy(max_bytes=len(data) - 3))
    parsed = parse_data_uri(f"data:image/png;base64,{lines}")
    assert parsed is not None
    assert (parsed.payload, parsed.decode()) == (plain, data)
    long = base64.encodebytes(bytes(range(256)) * 9000).decode()  # longer than one piece, which ends within a quartet
    parsed = parse_data_uri(f"data:image/png;base64,{long}")
    assert parsed is not None
    assert parsed.decode() == bytes(range(256)) * 9000
    parsed = parse_data_uri(f"data:image/png;base64,{long}A===")
    assert parsed is not None
    with pytest.raises(ValueError, match=r"."):
        parsed.decode()


def test_a_clip_by_data_uri(tmp_path: Path) -> None:
    lossless_clip(tmp_path / "clip.mp4", 4)
    data = base64.encodebytes((tmp_path / "clip.mp4").read_bytes()).decode()
    with open_clip(f"data:video/mp4;base64,{data}", MediaBudget()) as clip:
        assert isinstance(clip, ClipFile)
        assert clip.path.read_bytes() == (tmp_path / "clip.mp4").read_bytes()
        assert clip.label.startswith("data:video/mp4;base64,")
    assert not clip.path.exists()
    words = "not a clip: expected path, URL, data URI or list of pictures, got int"
    with pytest.raises(InputError, match=words), open_clip(5, MediaBudget()):
        pass


def test_data_uris() -> None:
    content = base64.b64encode(b"content").decode()
    for media_type in ("image/png", "image"):  # Qwen's documentation has the second
        source = MediaSource("image", f"data:{media_type};base64,{content}", "image")
        assert read_source(source, AccessPolicy(max_bytes=7)) == b"content"
    parsed = parse_data_uri(f"data:image/png;charset=x;base64,{content}")
    assert parsed is not None
    assert (parsed.media_type, parsed.kind) == ("image/png", "image")
    assert parse_data_uri("data:image/png,raw") is None
    with pytest.raises(InputError, match="not a clip"):
        read_source(MediaSource("video", f"data:image/png;base64,{content}", "video"), AccessPolicy())
    for payload in ("%%%", "ä"):
        with pytest.raises(InputError, match="not base64"):
            open_image(f"data:image/png;base64,{payload}")
    with pytest.raises(LimitError, match="at most 7 bytes"):
        read_source(MediaSource("image", "data:image/png;base64," + "A" * 16, "image"), AccessPolicy(max_bytes=7))


def test_a_clip_that_is_no_file_becomes_one(tmp_path: Path, web: Web) -> None:
    data = base64.b64encode(b"clip").decode()
    paths = [clip_file(url, PRIVATE, tmp_path) for url in (f"data:video/mp4;base64,{data}", f"{web.base}/ok.png")]
    assert len(set(paths)) == 2
    assert Path(paths[0]).read_bytes() == b"clip"
