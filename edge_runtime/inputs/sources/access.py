"""Which pictures and clips may be read, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3vl_edge.contract.errors import LimitError
from qwen3vl_edge.contract.formats.shown_url import shown_url

SCHEMES = frozenset({"data", "file", "http", "https"})
_NOUNS = {"image": "picture", "video": "clip"}


@dataclass(frozen=True)
class AccessPolicy:
    """What may be read. The defaults are for untrusted references: no file and no private address.

    Attributes:
        schemes: of SCHEMES; a plain path counts as "file".
        folders: only files under these are read; None for every file that this process can read.
        private_addresses: URLs may lead to addresses that are not public.
        proxies: the environment's proxies are used. A proxy resolves names itself, so no address can be checked.
        max_bytes: of one download or data URI, and of one file where `folders` restricts files.
        max_redirects: of one download.
        timeout_s: seconds of one download, from resolving the name to the last byte, redirects included.
        setting: the setting that sets `max_bytes`, for errors; empty where it is fixed.

    Raises:
        ValueError: addresses are to be checked, and proxies to be used.
    """

    schemes: frozenset[str] = SCHEMES
    folders: tuple[Path, ...] | None = ()
    private_addresses: bool = False
    proxies: bool = False
    max_bytes: int = 64 * 2**20
    max_redirects: int = 5
    timeout_s: float = 30.0
    setting: str = ""

    def __post_init__(self) -> None:
        if self.proxies and not self.private_addresses:
            raise ValueError("addresses cannot be checked behind a proxy")


# For references that the user of this process wrote: the library and the command line.
UNRESTRICTED = AccessPolicy(
    folders=None, private_addresses=True, proxies=True, max_bytes=2**30, max_redirects=20, timeout_s=600.0
)


@dataclass(frozen=True)
class MediaSource:
    """A picture or clip as a message names it.

    Attributes:
        reference: path, `file://` or `http(s)://` URL, or data URI.
        field: of the message, for errors.
    """

    kind: Literal["image", "video"]
    reference: str
    field: str

    @property
    def noun(self) -> str:
        return _NOUNS[self.kind]

    @property
    def label(self) -> str:
        """The reference for errors and logs: of a URL without user, password and query, cut to what can be shown."""
        shown = shown_url(self.reference) if self.scheme in ("http", "https") else self.reference
        return shown if len(shown) <= 120 else shown[:60] + "…"

    @property
    def scheme(self) -> str:
        """One of SCHEMES; "file" for a path and for what has no scheme that is known. Its case does not matter."""
        prefixes = {"data": "data:", "http": "http://", "https": "https://"}
        start = self.reference[:8].lower()
        return next((name for name, prefix in prefixes.items() if start.startswith(prefix)), "file")


def too_large(source: MediaSource, access: AccessPolicy, size: int | str) -> LimitError:
    """The error for content above the limit, of which `size` bytes are known."""
    return LimitError(
        f"{source.noun} {source.label} is too large",
        field=source.field,
        expected=f"at most {access.max_bytes} bytes{access.setting and f' ({access.setting})'}",
        got=size,
        remedy="Send a smaller one.",
    )
