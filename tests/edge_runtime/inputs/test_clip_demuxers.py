"""A demuxer opens nothing but the bytes it was given: canaries for everything that libavformat could follow.

Each file here makes some demuxer open the canary's file or port where it is free to choose; the first test shows that
the canaries sing.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import decord
import pytest

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.inputs.clip_reader import Clip, read_clip
from qwen3vl_edge.edge_runtime.inputs.lean.resize import frame_resize
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import check_clip
from qwen3vl_edge.edge_runtime.inputs.sources.clips import ClipFile, write_clip
from qwen3vl_edge.edge_runtime.inputs.sources.containers import KINDS
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget, MediaLimits
from tests.support.canary import CanaryFile, CanaryPort
from tests.support.pixel_policies import QWEN_PIXELS
from tests.support.video_files import lossless_clip

DASH = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT4S" minBufferTime="PT1S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="1" bandwidth="1000" width="160" height="120"><BaseURL>{}</BaseURL><SegmentBase/>
</Representation></AdaptationSet></Period></MPD>
"""
SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
a=control:{}
m=video 5004 RTP/AVP 96
a=rtpmap:96 H264/90000
"""
IMF = """<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">
<Id>urn:uuid:00000000-0000-0000-0000-000000000000</Id><ContentTitle>{}</ContentTitle><EditRate>24 1</EditRate>
</CompositionPlaylist>
"""
# Playlists, scripts and references in text, by the demuxer that follows them; {} is what they lead to.
TEXTS = {
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:4\n#EXTINF:4.0,\n{}\n#EXT-X-ENDLIST\n",
    "hls of playlists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000\n{}\n",
    "hls with a key": '#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:4.0,\n{0}\n',
    "hls with a map": '#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXT-X-MAP:URI="{0}"\n#EXTINF:4.0,\n{0}\n#EXT-X-ENDLIST\n',
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "concat": "file '{}'\n",
    "dash": DASH,
    "sdp": SDP,
    "imf": IMF,
    "vobsub": "# VobSub index file, v7\n# {}\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 000000000\n",
    "avisynth": 'FFVideoSource("{}")\n',
    "m3u": "{}\n",
    "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
    "asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>\n',
    "smil": '<smil><body><video src="{}"/></body></smil>\n',
    "rtsp": "rtsptext{}\n",
    "reference of QuickTime": "[Reference]\nRef1={}\n",
    "jacosub": "#INCLUDE {}\n0:00:00.00 0:00:01.00 D x\n",
    "webvtt": "WEBVTT\n\nNOTE {}\n\n00:00.000 --> 00:01.000\nx\n",
    "ffmetadata": ";FFMETADATA1\ntitle={}\n",
}
# Suffixes by which libavformat tells playlists, scripts and series of pictures.
SUFFIXES = ("", ".mp4", ".m3u8", ".mpd", ".ffconcat", ".sdp", ".idx", ".avs", ".xml", ".MLV", "%03d.jpg")


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret")
    lossless_clip(folder / "secret.ts", 8)
    return folder / "secret.ts"


@pytest.fixture
def canary(secret: Path) -> Iterator[CanaryFile]:
    with CanaryFile(secret) as file:
        yield file


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real clip, to put a playlist before or into."""
    path = tmp_path_factory.mktemp("clip") / "clip.ts"
    lossless_clip(path, 8)
    return path.read_bytes()


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    lossless_clip(path, 8)
    return path.read_bytes()


def read_all(path: Path) -> int:
    """The clip's sampled frames, or 0 where it is refused."""
    try:
        resize = frame_resize(QWEN_PIXELS)
        return read_clip(
            ClipFile(path, "it"), {}, MediaBudget(), lambda clip: len(clip.frames(64, 64, MediaBudget(), resize))
        )
    except ContractError:
        return 0


def test_the_canaries_sing(tmp_path: Path, secret: Path, canary: CanaryFile) -> None:
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(TEXTS["hls"].format(secret))
    with contextlib.suppress(av.FFmpegError), av.open(str(playlist), options={"extension_picky": "0"}):
        pass
    assert canary.was_opened()
    assert not canary.was_opened()
    with CanaryPort() as port:
        with contextlib.suppress(av.FFmpegError, OSError):
            av.open(f"http://127.0.0.1:{port.port}/a.ts", timeout=0.3)
        assert port.was_reached()


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_that_a_text_names_is_opened(
    tmp_path: Path, secret: Path, canary: CanaryFile, stream: bytes, text: str
) -> None:
    """Alone, before a real clip (what one libavformat calls a playlist, another calls a stream), and inside of one."""
    with CanaryPort() as port:
        for target in (secret, f"file:{secret}", f"file://{secret}", f"http://127.0.0.1:{port.port}/a.ts"):
            content = TEXTS[text].format(target).encode()
            padded = content + b"\n" * (-len(content) % 188)
            files = [(content, suffix) for suffix in SUFFIXES]
            files += [(padded + stream, ".m3u8"), (stream[:188] + padded + stream[188:], "")]
            for number, (data, suffix) in enumerate(files):
                path = tmp_path / f"clip{number}{suffix}"
                path.write_bytes(data)
                read_all(path)
                assert not canary.was_opened(), (target, number)
                assert not port.was_reached(), (target, number)


def test_a_stream_after_a_playlist_is_read_as_the_stream(
    tmp_path: Path, secret: Path, canary: CanaryFile, stream: bytes
) -> None:
    """The attack: PyAV's libavformat wants a playlist's suffix and found the stream, decord's found the playlist."""
    content = TEXTS["hls"].format(secret).encode()
    path = write_clip(content + b"\n" * (-len(content) % 188) + stream, tmp_path)
    with contextlib.suppress(decord.DECORDError):
        decord.VideoReader(str(path))
    assert canary.was_opened()
    assert not check_clip(path, "it", MediaLimits()).for_every_reader
    readers: list[Clip] = []
    read_clip(ClipFile(path, "it"), {}, MediaBudget(), readers.append)
    assert [clip.metadata["video_backend"] for clip in readers] == ["pyav"]
    assert not canary.was_opened()


def test_a_playlist_alone_is_no_clip(tmp_path: Path, secret: Path) -> None:
    path = write_clip(TEXTS["hls"].format(secret).encode(), tmp_path)
    with pytest.raises(InputError, match=r"is not a clip.*Playlists and scripts are not followed"):
        check_clip(path, "it", MediaLimits())


def test_numbered_pictures_are_no_clip(tmp_path: Path, secret: Path, movie: bytes) -> None:
    """A name that is a pattern: libavformat reads the files that fit it, whatever this one holds."""
    first = tmp_path / "a001.jpg"
    first.write_bytes(b"\xff\xd8\xff\xe0 not for you")
    named = tmp_path / "a%03d.jpg"
    named.write_bytes(movie)
    with CanaryFile(first) as canary:
        assert read_all(named) == 8
        assert not canary.was_opened()


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def _alias(secret: Path, levels: int) -> bytes:
    """A `dref` entry of kind `alis`, as `mov_read_dref` of FFmpeg takes it apart; of 0 levels its path is absolute."""
    name = str(secret).encode()
    head = bytes(10) + bytes([1]) + b"v".ljust(27, b"\0") + bytes(12) + bytes([len(secret.name)])
    head += secret.name.encode().ljust(63, b"\0") + bytes(16) + struct.pack(">hh", levels, levels) + bytes(16)
    tail = struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2)
    tail += struct.pack(">HH", 18, len(name)) + name + bytes(len(name) % 2)
    return _box(b"alis", bytes(4) + head + tail + struct.pack(">HH", 0xFFFF, 0) + bytes(40))


def _replace_in(data: bytes, path: list[bytes], kind: bytes, content: bytes) -> bytes:
    """The file with a box inside of others replaced, and their sizes corrected."""
    at, parents = 0, []
    for name in path:
        at = data.index(name, at) - 4
        parents.append(at)
        at += 8
    place = data.index(kind, at) - 4
    (size,) = struct.unpack_from(">I", data, place)
    changed = bytearray(data[:place] + content + data[place + size :])
    for parent in parents:
        (old,) = struct.unpack_from(">I", changed, parent)
        struct.pack_into(">I", changed, parent, old + len(content) - size)
    return bytes(changed)


def _references(secret: Path, movie: bytes) -> dict[str, bytes]:
    url = _box(b"url ", bytes(4) + str(secret).encode() + b"\0")
    urn = _box(b"urn ", bytes(4) + b"x\0" + str(secret).encode() + b"\0")
    one = struct.pack(">II", 0, 1)
    within = [b"moov", b"trak", b"mdia", b"minf", b"dinf"]
    entries = {"alis": _alias(secret, 0), "alis of a neighbour": _alias(secret, 1), "url": url, "urn": urn}
    found = {name: _replace_in(movie, within, b"dref", _box(b"dref", one + entry)) for name, entry in entries.items()}
    rdrf = _box(b"rdrf", bytes(4) + b"url " + struct.pack(">I", len(str(secret)) + 1) + str(secret).encode() + b"\0")
    rmra = _box(b"moov", _box(b"rmra", _box(b"rmda", rdrf)))
    return {**found, "rmra": _box(b"ftyp", b"qt  " + bytes(4)) + rmra, "rmra beside": movie + rmra}


@pytest.mark.parametrize("kind", ["alis", "alis of a neighbour", "url", "urn", "rmra", "rmra beside"])
def test_references_of_quicktime_are_not_followed(
    tmp_path: Path, secret: Path, canary: CanaryFile, movie: bytes, kind: str
) -> None:
    folder = secret.parent if kind == "alis of a neighbour" else tmp_path
    path = folder / "clip.mov"
    path.write_bytes(_references(secret, movie)[kind])
    read_all(path)
    assert not canary.was_opened()


@pytest.mark.parametrize("kind", ["alis", "alis of a neighbour"])
def test_these_aliases_would_be_followed(
    tmp_path: Path, secret: Path, canary: CanaryFile, movie: bytes, kind: str
) -> None:
    path = (secret.parent if kind == "alis of a neighbour" else tmp_path) / "clip.mov"
    path.write_bytes(_references(secret, movie)[kind])
    options = {"enable_drefs": "1", "use_absolute_path": "1"}
    with contextlib.suppress(av.FFmpegError), av.open(str(path), options=options):
        pass
    assert canary.was_opened()


def _demuxers() -> list[str]:
    """All that this libavformat has."""
    found = []
    for name in sorted(av.formats_available):
        with contextlib.suppress(ValueError):
            if av.ContainerFormat(name, "r").is_input:
                found.append(name)
    return found


def test_every_demuxer_that_may_be_chosen_is_listed(
    tmp_path: Path, secret: Path, canary: CanaryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever libavformat has, under every suffix of its demuxers: one of KINDS is named, or no library is called."""
    chosen: list[Any] = []
    real = av.open
    monkeypatch.setattr(av, "open", lambda *args, **named: chosen.append(named.get("format")) or real(*args, **named))
    demuxers = _demuxers()
    assert {"hls", "concat", "dash", "image2", "sdp", "rtsp", "vobsub"} & set(demuxers)
    for name in demuxers:
        for suffix in av.ContainerFormat(name, "r").extensions or {name}:
            path = tmp_path / f"clip.{suffix}"
            path.write_text(TEXTS["hls"].format(secret))
            assert read_all(path) == 0
    assert not chosen
    assert not canary.was_opened()
    for kind in KINDS:
        assert set(kind.demuxer.split(",")) <= {alias for name in demuxers for alias in name.split(",")}
