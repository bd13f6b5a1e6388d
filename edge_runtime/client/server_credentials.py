"""The token and certificates with which this device and its server authenticate."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.http.tls import client_context

ENVIRONMENT = "QWEN3VL_EDGE_SERVER_"
CONNECT_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class ServerAccess:
    """Settings of one server's clients.

    Attributes:
        token: sent as a bearer token; kept out of logs and of this object's text.
        ca: PEM file of the only authorities that may sign the server's certificate; None for the default ones.
        cert: this device's own certificate, for a server that requires one. key: of it, where `cert` does not hold it.

    Raises:
        InputError: a token that no header can carry.
    """

    token: str = field(default="", repr=False)
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise InputError(
                "the server's token has a character that no header can carry",
                field="server_api_key",
                expected="visible ASCII",
            )

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def verify(self) -> ssl.SSLContext | bool:
        """As httpx has it; the files are read.

        Raises:
            InputError: one of the files cannot be used.
        """
        if self.ca is None and self.cert is None and self.key is None:
            return True
        return client_context(self.ca, self.cert, self.key)

    def sends_token_in_clear(self, url: str) -> bool:
        """Whether others on the network could read the token."""
        local = ("http://127.", "http://localhost", "http://[::1]")
        return bool(self.token) and url.startswith("http://") and not url.startswith(local)


NO_CREDENTIALS = ServerAccess()


def access_from_environment(environment: Mapping[str, str] | None = None) -> ServerAccess:
    """The daemon's settings of these names: QWEN3VL_EDGE_SERVER_API_KEY, …_CA, …_CERT and …_KEY.

    Raises:
        InputError: as `ServerAccess`.
    """
    variables = os.environ if environment is None else environment
    ca, cert, key = (
        Path(value) if (value := variables.get(f"{ENVIRONMENT}{name}")) else None for name in ("CA", "CERT", "KEY")
    )
    return ServerAccess(variables.get(f"{ENVIRONMENT}API_KEY", ""), ca, cert, key)
