"""TLS files of either side, held against each other at start: a wrong one is one line that names it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_edge.contract.errors import InputError


@dataclass(frozen=True)
class ServerTls:
    """What a server shows, and asks for. PEM files.

    Attributes:
        cert: its certificate, followed by those that lead to the root.
        key: of the certificate, without a pass phrase.
        client_ca: whoever has no certificate signed by one of these is not let in; None asks for none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


def server_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """The settings `tls_cert`, `tls_key` and `tls_client_ca`, tried out; None where none is set.

    Raises:
        InputError: one is missing, cannot be read, is not PEM, or key and certificate do not belong together.
    """
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        missing = "tls_cert" if cert is None else "tls_key"
        raise InputError("TLS needs a certificate and its key", field=missing, remedy=f"Set {missing} as well.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_pair(context, cert, key, "tls_cert", "tls_key")
    if client_ca is not None:
        _load_authorities(context, client_ca, "tls_client_ca")
    return ServerTls(cert, key, client_ca)


def client_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """What a client verifies a server with, and shows it; TLS 1.2 or later.

    Args:
        ca: the only authorities that are trusted; None for those of the system.
        cert: the client's own certificate; None for none. key: of it; None where the same file holds both.

    Raises:
        InputError: a file cannot be read, is not PEM, or key and certificate do not belong together.
    """
    if cert is None and key is not None:
        raise InputError("a key without its certificate", field="server_cert", remedy="Set server_cert as well.")
    if ca is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
        _load_authorities(context, ca, "server_ca")
    if cert is not None:
        _load_pair(context, cert, key or cert, "server_cert", "server_key")
    return context


def _load_pair(context: ssl.SSLContext, cert: Path, key: Path, cert_field: str, key_field: str) -> None:
    def ask() -> str:  # or OpenSSL would wait for somebody to type
        raise InputError(
            f"key {key} has a pass phrase", field=key_field, remedy="Store it without: openssl pkey -in KEY -out FILE"
        )

    _readable(cert, cert_field)
    _readable(key, key_field)
    try:
        context.load_cert_chain(cert, key, ask)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise InputError(f"key {key} is not that of certificate {cert}", field=key_field) from None
        text = f"{cert} and {key} are not a certificate and its key in PEM ({error.reason or error})"
        raise InputError(text, field=cert_field) from None


def _load_authorities(context: ssl.SSLContext, ca: Path, field: str) -> None:
    _readable(ca, field)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise InputError(f"{ca} holds no certificates in PEM ({error.reason or error})", field=field) from None


def _readable(path: Path, field: str) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", field=field) from None
