"""Keeps web pages of other origins out of the local API.

A browser lets any page post to 127.0.0.1 (cross-site request forgery), and lets it read the answers once its name
resolves there (DNS rebinding). The `Origin` header, which a page cannot forge, prevents the first; the `Host` header,
which has the rebound name, prevents the second. Programs such as OpenAI's client send no `Origin`. Browsers cannot open
a Unix socket, so there nothing is checked.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen3vl_edge.contract.http.errors import HttpError, error_response


class BrowserGuard:
    """ASGI middleware; it answers 403 to a request of a foreign page or under a foreign name.

    Args:
        host: address that the daemon listens on.
        allowed_hosts: further names of this daemon.
        allowed_origins: pages of other servers that may use the API, as "https://example.org".
    """

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Iterable[str], allowed_origins: Iterable[str]) -> None:
        self._app = app
        machine = socket.gethostname()
        names = ("localhost", host, machine, f"{machine}.local", *allowed_hosts)
        self._hosts = frozenset(name.lower().rstrip(".") for name in names)
        self._origins = frozenset(origin.lower() for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_unix_socket(scope):
            refusal = self._refusal(Headers(scope=scope), scope["method"])
            if refusal is not None:
                await error_response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers, method: str) -> HttpError | None:
        # Only HTTP/1.0 has no Host, and no browser uses it.
        host = headers.get("host", "localhost").lower()
        if not self._is_own(hostname(host)):
            return HttpError(
                403,
                "host_not_allowed",
                "host name is not allowed",
                field="Host",
                got=repr(host)[:80],
                remedy="Add the name to allowed_hosts, or use the address.",
            )
        origin = headers.get("origin", "").lower()
        if origin in self._origins:
            return None
        if (origin and origin.partition("://")[2] != host) or (not origin and _from_another_site(headers, method)):
            return HttpError(
                403,
                "origin_not_allowed",
                "a web page of another origin may not use this API",
                field="Origin",
                got=repr(origin)[:80] if origin else "another site",
                remedy="Add the page's origin to allowed_origins.",
            )
        return None

    def _is_own(self, name: str) -> bool:
        if name in self._hosts or name.endswith(".localhost"):
            return True
        try:
            # Only a name can be made to resolve to another machine; an address cannot.
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def hostname(netloc: str) -> str:
    """The name or address of "name:port" or "[address]:port", without port, brackets and final dot."""
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    return netloc.partition(":")[0].rstrip(".")


def _from_another_site(headers: Headers, method: str) -> bool:
    """Whether a page loads this without an Origin: pictures, scripts, frames. A followed link does not count."""
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    return not (
        method in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _is_unix_socket(scope: Scope) -> bool:
    server = scope.get("server")
    return server is None or server[1] is None
