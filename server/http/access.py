"""Access control and rate limits, checked before a byte of a body is read."""

from __future__ import annotations

import ipaddress
import logging
import math
import time
from collections import Counter
from collections.abc import Callable

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen3vl_edge.contract.errors import LimitError
from qwen3vl_edge.contract.http.errors import HttpError, error_response
from qwen3vl_edge.contract.http.idempotency_key import HEADER
from qwen3vl_edge.contract.http.sender import sender_of
from qwen3vl_edge.server.http.audit import AuditLog, RequestRecord
from qwen3vl_edge.server.http.rate_limit import RateLimit
from qwen3vl_edge.server.http.tokens import TokenEntry, TokenFile
from qwen3vl_edge.server.options import ServerOptions

logger = logging.getLogger("server")
OPEN = ("/healthz", "/readyz")  # for monitoring and load balancers; both are cheap
SCRAPE = "/metrics"
DELETE = "DELETE"  # cheap, and frees resources that others wait for
DELETES_PER_REQUEST = 10  # how many of them the limit of requests allows


class UnauthorizedError(HttpError):
    """The token is missing, unknown or expired."""

    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(
            401,
            "invalid_api_key",
            message,
            field="Authorization",
            expected="Bearer TOKEN",
            remedy="Ask the server's operator for a token.",
        )
        self.challenge = challenge


class TooOftenError(LimitError):
    """A client sent more requests than its limit allows.

    Attributes:
        retry_after: whole seconds after which a retry can succeed.
    """

    status = 429

    def __init__(self, code: str, message: str, expected: str, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(message, expected=expected, remedy=f"Try again in {self.retry_after} s.")
        self.code = code


class Guard:
    """Access control of a server: tokens, limits and the audit log.

    Args:
        unread: the generations of a client, by name, that go on without a reader, other than the one of this
            Idempotency-Key.

    Raises:
        InputError: a file cannot be used.
    """

    def __init__(self, options: ServerOptions, unread: Callable[[str, str | None], int] = lambda name, key: 0) -> None:
        self.tokens = TokenFile(options.tokens_file) if options.tokens_file is not None else None
        self.audit = AuditLog(options.audit_log) if options.audit_log is not None else None
        self._per_minute = options.rate_per_minute
        self._rate = RateLimit(options.rate_per_minute, options.rate_burst)
        self._deletes = RateLimit(0, options.rate_burst * DELETES_PER_REQUEST)
        self._unread = unread
        self._open = OPEN if options.metrics_token else (*OPEN, SCRAPE)
        self._under_way: Counter[str] = Counter()

    def install(self, app: FastAPI) -> None:
        """Add the middleware; middleware that is added later runs before it."""
        app.add_middleware(_Access, guard=self)
        app.add_middleware(RequestRecord, audit=self.audit)

    @property
    def rereads(self) -> bool:
        """Whether SIGHUP is handled: also with only an audit log, because logrotate may send it with a moved file."""
        return self.tokens is not None or self.audit is not None

    def on_hangup(self) -> None:
        """Check the tokens file again; may be called in a signal handler."""
        if self.tokens is not None:
            self.tokens.check_soon()

    def admit(self, scope: Scope) -> TokenEntry | None:
        """Admit a request; returns the entry of its token, None if no tokens are required.

        Raises:
            UnauthorizedError, TooOftenError: the request is rejected.
        """
        if scope["path"] in self._open:
            return None
        address = f"address {sender_of(scope['client'][0] if scope.get('client') else '')}"
        try:
            entry = self._entry(scope)
        except UnauthorizedError:
            self._take(address, self._per_minute)  # guessing tokens is rate-limited too, with every method
            raise
        own = None if entry is None else entry.requests_per_minute
        sender = address if entry is None else f"client {entry.name}"
        self._take(sender, self._per_minute if own is None else own, scope["method"] == DELETE)
        return entry

    def _entry(self, scope: Scope) -> TokenEntry | None:
        if self.tokens is None:
            return None
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if not values:
            raise UnauthorizedError("this server requires a token", "Bearer")
        scheme, _, token = values[0].strip().partition(b" ")
        entry = self.tokens.find(token.strip()) if len(values) == 1 and scheme.lower() == b"bearer" else None
        if entry is None:
            raise UnauthorizedError("unknown token", 'Bearer error="invalid_token"')
        if entry.expires is not None and entry.expires <= time.time():
            raise UnauthorizedError("the token has expired", 'Bearer error="invalid_token"')
        return entry

    def _take(self, sender: str, per_minute: float, is_delete: bool = False) -> None:
        limit = self._deletes if is_delete else self._rate
        allowed = per_minute * (DELETES_PER_REQUEST if is_delete else 1)
        if seconds := limit.take(sender, allowed):
            raise TooOftenError("rate_limited", "too many requests", f"at most {allowed:g} requests a minute", seconds)

    def enter(self, scope: Scope, entry: TokenEntry) -> None:
        """Count a request of this client as in flight, until `leave`.

        Generations of the client that go on without a reader count as well: else it could start one after the other
        and disconnect. The one that this request joins is counted once.

        Raises:
            TooOftenError: the client has reached its limit of concurrent requests.
        """
        most = entry.max_concurrent
        if most is not None and scope["method"] != DELETE:
            running = self._under_way[entry.name] + self._unread(entry.name, _key(scope))
            if running >= most:
                expected = f"at most {most}, generations without a reader included"
                raise TooOftenError("too_many_concurrent", "too many concurrent requests", expected, 1)
        self._under_way[entry.name] += 1

    def leave(self, entry: TokenEntry) -> None:
        self._under_way[entry.name] -= 1
        if self._under_way[entry.name] <= 0:
            del self._under_way[entry.name]


def _key(scope: Scope) -> str | None:
    """The request's Idempotency-Key, which may turn out to be malformed."""
    name = HEADER.lower().encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


class _Access:
    """ASGI middleware; puts the client's name into `request.state.client_name`."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            entry = self._guard.admit(scope)
            if entry is not None:
                scope["state"]["client_name"] = entry.name
                self._guard.enter(scope, entry)
        except (UnauthorizedError, TooOftenError) as error:
            scope["state"]["error_code"] = error.code
            challenge = {"WWW-Authenticate": error.challenge} if isinstance(error, UnauthorizedError) else None
            await error_response(error, challenge)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if entry is not None:
                self._guard.leave(entry)


def warn_of_open_doors(options: ServerOptions) -> None:
    """Warn at the start if the port is reachable without a token or without TLS."""
    if _is_loopback(options.host):
        return
    if options.tokens_file is None and options.tls_client_ca is None:
        logger.warning(
            "%s is reachable from other machines, and no token is required: anyone who reaches it may use it. "
            "Set tokens_file, or let a proxy authenticate.",
            options.host,
        )
    if options.tls_cert is None:
        logger.warning("no TLS: prompts, embeddings and tokens can be read in transit. Set tls_cert and tls_key.")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
