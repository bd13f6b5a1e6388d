"""TLS files of server and client, validated at start: an unusable file gives one error that names it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from qwen3vl_edge.contract.errors import InputError


@dataclass(frozen=True)
class ServerTls:
    """TLS files of a server, in PEM.

    Attributes:
        cert: its certificate, followed by the chain to the root.
        key: the certificate's key, without a pass phrase.
        client_ca: authorities of which one must have signed a client's certificate; None requires no certificate.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


def server_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> ServerTls | None:
    """Load and validate `tls_cert`, `tls_key` and `tls_client_ca`; None if none is set.

    Raises:
        InputError: a file is missing, cannot be read, is not PEM, or key and certificate do not match.
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
    """A client's TLS context, which verifies the server's certificate and name; TLS 1.2 or later.

    Args:
        ca: the only trusted authorities; None for those of the system.
        cert: the client's own certificate; None for none.
        key: the certificate's key; None if `cert` contains both.

    Raises:
        InputError: a file cannot be read, is not PEM, or key and certificate do not match.
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
    def reject_pass_phrase() -> str:  # without it OpenSSL would prompt for the pass phrase and block
        raise InputError(
            f"key {key} has a pass phrase", field=key_field, remedy="Store it without: openssl pkey -in KEY -out FILE"
        )

    _readable(cert, cert_field)
    _readable(key, key_field)
    try:
        context.load_cert_chain(cert, key, reject_pass_phrase)
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
