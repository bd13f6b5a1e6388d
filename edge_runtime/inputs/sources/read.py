"""The content of a picture or clip: bytes, or the path of a local file, within an access policy."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.data_uri import parse_data_uri
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy, MediaSource, too_large


def read_source(source: MediaSource, access: AccessPolicy) -> bytes | Path:
    """The content of a data URI or URL as bytes, of a file as its path. Blocks.

    Without `access.folders` a path is returned unchecked: the function that opens it reports its errors.

    Raises:
        InputError: not allowed, missing, unreachable, or a data URI of another kind or not in base64.
        LimitError: more than `access.max_bytes`.
    """
    check_scheme(source, access)
    if source.scheme == "data":
        return _data_uri(source, access)
    if source.scheme in ("http", "https"):
        from qwen3vl_edge.edge_runtime.inputs.sources.download import download

        return download(source, access)
    if access.folders is None:
        return file_path(source.reference)
    return _file_in_folders(source, access, access.folders)


def check_scheme(source: MediaSource, access: AccessPolicy) -> None:
    """Raises: InputError: a scheme that is not allowed."""
    if source.scheme not in access.schemes:
        allowed = ", ".join(sorted(access.schemes))
        raise InputError(
            f"{source.noun} {source.label} has a scheme that is not allowed",
            field=source.field,
            expected=allowed,
            got=source.scheme,
        )


def file_path(reference: str) -> Path:
    """The path that a plain path, or a `file:` URL of this machine, names.

    qwen-vl-utils takes what follows `file://` literally, RFC 8089 percent-encodes it: the literal path is taken where
    there is such a file.
    """
    if reference[:5].lower() != "file:" or os.path.exists(reference):
        return Path(reference)
    literal = reference[5:]
    if literal.startswith("//"):
        literal = literal[2:]
        if not literal.startswith("/") and not os.path.exists(literal):
            host, slash, path = literal.partition("/")
            literal = slash + path if host.lower() == "localhost" else literal
    return Path(literal if os.path.exists(literal) else unquote(literal.partition("#")[0].partition("?")[0]) or literal)


def _data_uri(source: MediaSource, access: AccessPolicy) -> bytes:
    uri = parse_data_uri(source.reference)
    if uri is None or uri.kind != source.kind:
        raise InputError(
            f"data URI {source.label} is not a {source.noun}",
            field=source.field,
            expected=f"data:{source.kind}/…;base64,…",
        )
    if uri.decoded_bytes > access.max_bytes + 2:
        raise too_large(source, access, uri.decoded_bytes)
    try:
        return uri.decode()
    except ValueError:
        raise InputError(f"data URI {source.label} is not base64", field=source.field) from None


def _file_in_folders(source: MediaSource, access: AccessPolicy, folders: tuple[Path, ...]) -> Path:
    try:
        real = file_path(source.reference).resolve(
            strict=True
        )  # a link inside an allowed folder may point outside of it
    except (OSError, RuntimeError, ValueError):
        real = None
    inside = real is not None and any(real.is_relative_to(folder.resolve()) for folder in folders)
    if real is None or not inside or not real.is_file():
        # One message for both: a client must not learn whether a file exists elsewhere.
        allowed = ", ".join(str(folder) for folder in folders) or "none"
        raise InputError(
            f"{source.label} is not a file in an allowed folder",
            field=source.field,
            expected=f"a file under: {allowed}",
            remedy="Allow its folder with media_folders, or send the content as a data URI.",
        )
    if real.stat().st_size > access.max_bytes:
        raise too_large(source, access, real.stat().st_size)
    return real
