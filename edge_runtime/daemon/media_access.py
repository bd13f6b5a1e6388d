"""Which pictures and clips a client of the daemon may name, and how they are fetched.

A client can reach more through the daemon than by itself: the device's files and the network it stands in. So files
come from allowed folders alone, and a URL must lead to a public address unless told otherwise. The connection goes
to the very address that was checked, at every redirect again: a name that changes its mind in between gains nothing.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import httpx

from qwen3vl_edge.contract.errors import InputError, LimitError
from qwen3vl_edge.edge_runtime.inputs.images import decode_image

FETCH_SECONDS = 30.0
MAX_REDIRECTS = 5


@dataclass(frozen=True)
class MediaAccess:
    """What is allowed.

    Attributes:
        folders: files under these, and no others.
        private_hosts: URLs may lead to addresses that are not public.
        max_bytes: of one picture or clip.
    """

    folders: tuple[Path, ...] = ()
    private_hosts: bool = False
    max_bytes: int = 64 * 2**20


def fetch_image(url: str, access: MediaAccess) -> Any:
    """A decoded PIL image from a data URI, file or URL.

    Raises:
        InputError: not allowed, missing, unreachable or not a picture.
        LimitError: too large.
    """
    return decode_image(_content(url, "image", access), _label(url))


def fetch_clip(url: str, access: MediaAccess, scratch: Path) -> str:
    """A clip as a path; what is not a file already is written into `scratch`.

    Raises:
        InputError: not allowed, missing or unreachable.
        LimitError: too large.
    """
    content = _content(url, "video", access)
    if isinstance(content, Path):
        return str(content)
    path = scratch / f"clip-{len(list(scratch.iterdir()))}"
    path.write_bytes(content)
    return str(path)


def _content(url: str, kind: str, access: MediaAccess) -> bytes | Path:
    if url.startswith("data:"):
        return _data_uri(url, kind, access)
    if url.startswith(("http://", "https://")):
        return _download(url, kind, access)
    return _file(url, kind, access)


def _data_uri(url: str, kind: str, access: MediaAccess) -> bytes:
    header, separator, payload = url.partition(";base64,")
    if not separator or not header.startswith(f"data:{kind}/"):
        raise InputError("data URI is of another kind", field=f"{kind}_url", expected=f"data:{kind}/…;base64,…")
    if len(payload) * 3 // 4 > access.max_bytes + 2:
        raise _too_large(url, kind, access)
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error:
        raise InputError("data URI is not base64", field=f"{kind}_url") from None


def _file(url: str, kind: str, access: MediaAccess) -> Path:
    path = Path(unquote(urlsplit(url).path) if url.startswith("file://") else url)
    try:
        real = path.resolve(strict=True)  # a link out of an allowed folder leads out of it
    except (OSError, RuntimeError, ValueError):
        real = None
    inside = real is not None and any(real.is_relative_to(folder.resolve()) for folder in access.folders)
    if real is None or not inside or not real.is_file():
        # One message for both: whether a file exists elsewhere is none of the client's business.
        allowed = ", ".join(str(folder) for folder in access.folders) or "none"
        raise InputError(
            f"{_label(url)} is not a file in an allowed folder",
            field=f"{kind}_url",
            expected=f"a file under: {allowed}",
            remedy="Allow its folder with media_folders, or send the content as a data URI.",
        )
    if real.stat().st_size > access.max_bytes:
        raise _too_large(url, kind, access)
    return real


def _download(url: str, kind: str, access: MediaAccess) -> bytes:
    try:
        with httpx.Client(timeout=FETCH_SECONDS, trust_env=False) as client:
            for _ in range(MAX_REDIRECTS + 1):
                answer = client.send(_pinned(client, url, kind, access), stream=True)
                try:
                    if answer.is_redirect:
                        url = urljoin(url, answer.headers["location"])
                        continue
                    answer.raise_for_status()
                    return _read(answer, url, kind, access)
                finally:
                    answer.close()
    except httpx.HTTPStatusError as error:
        raise InputError(f"{_label(url)} answered {error.response.status_code}", field=f"{kind}_url") from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        if isinstance(error, (InputError, LimitError)):
            raise
        raise InputError(f"{_label(url)} cannot be fetched ({type(error).__name__})", field=f"{kind}_url") from None
    raise InputError(f"{_label(url)} redirects too often", field=f"{kind}_url", expected=f"at most {MAX_REDIRECTS}")


def _pinned(client: httpx.Client, url: str, kind: str, access: MediaAccess) -> httpx.Request:
    """The request for a URL, to an address of its host that was checked; TLS still proves the host's name."""
    parts = httpx.URL(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise InputError(f"{_label(url)} leads to no web address", field=f"{kind}_url", expected="http or https")
    address = _address(parts.host, parts.port or (443 if parts.scheme == "https" else 80), url, kind, access)
    return client.build_request(
        "GET",
        parts.copy_with(host=address, username=None, password=None),
        headers={"Host": parts.netloc.decode("ascii")},
        extensions={"sni_hostname": parts.host},
    )


def _address(host: str, port: int, url: str, kind: str, access: MediaAccess) -> str:
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise InputError(f"{_label(url)} has a host that is not known", field=f"{kind}_url") from None
    if not access.private_hosts and not all(_public(address) for address in found):
        raise InputError(
            f"{_label(url)} leads into a private network",
            field=f"{kind}_url",
            expected="a public address",
            remedy="Allow it with allow_private_urls, or send the content as a data URI.",
        )
    return found[0]


def _public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.split("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    checked = mapped or parsed
    return checked.is_global and not checked.is_multicast


def _read(answer: httpx.Response, url: str, kind: str, access: MediaAccess) -> bytes:
    body = bytearray()
    for chunk in answer.iter_bytes():
        body += chunk
        if len(body) > access.max_bytes:
            raise _too_large(url, kind, access)
    return bytes(body)


def _too_large(url: str, kind: str, access: MediaAccess) -> LimitError:
    return LimitError(f"{_label(url)} is too large", field=f"{kind}_url", expected=f"at most {access.max_bytes} bytes")


def _label(url: str) -> str:
    return url if len(url) <= 120 else url[:60] + "…"
