"""What the requests in flight hold: each resource is claimed before it is spent, and given back at the end.

A resource has a limit for one request, for all requests of one client, and for all requests together. The first is a
setting of its own. The other two are multiples of it: a server with `max_in_flight = 4` holds no more than four of the
largest requests would.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

from qwen3vl_edge.contract.errors import LimitError

WAIT_SECONDS = 5.0
RETRY_AFTER_SECONDS = 2
PER_CLIENT, IN_ALL = "max_in_flight_per_client", "max_in_flight"

# Names of resources.
BODY_BYTES = "body bytes"
DECOMPRESSED_BYTES = "decompressed bytes"
JSON_VALUES = "JSON values"
PIXELS = "pixels"
VISUAL_TOKENS = "visual tokens"


class InFlightError(LimitError):
    """The requests in flight hold too much; the same request is accepted once they hold less."""

    status = 429
    code = "too_much_in_flight"
    retry_after = RETRY_AFTER_SECONDS


@dataclass(frozen=True)
class Resource:
    """Something that requests hold, in whole units.

    Attributes:
        name: in messages and metrics, such as "body bytes".
        field: what an error of one request names.
        setting: the setting that limits one request.
        per_request: that limit.
    """

    name: str
    field: str
    setting: str
    per_request: int


class Ledger:
    """The claims of all requests in flight; thread-safe.

    Args:
        per_client: one client's requests may hold this many times what one request may.
        in_all: all requests together.
        wait_s: seconds that `Account.wait_for` waits.

    Attributes:
        opened: requests so far.
    """

    def __init__(
        self, resources: Sequence[Resource], per_client: int, in_all: int, wait_s: float = WAIT_SECONDS
    ) -> None:
        self._resources = {resource.name: resource for resource in resources}
        self._per_client, self._in_all = per_client, in_all
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._clients: dict[str, Counter[str]] = {}  # only those that hold something
        self._held: Counter[str] = Counter()
        self._waiting: set[_Waiter] = set()
        self.opened = 0

    def open(self, client: str) -> Account:
        """A new request of a client."""
        self.opened += 1
        return Account(self, client)

    @property
    def held(self) -> Mapping[str, int]:
        """What all requests hold, by resource."""
        with self._lock:
            return {name: self._held[name] for name in self._resources}

    def _check_request(self, name: str, amount: int) -> None:
        resource = self._resources[name]
        if amount > resource.per_request:
            raise LimitError(
                f"the request has too many {name}",
                field=resource.field,
                expected=f"at most {resource.per_request} ({resource.setting})",
                got=amount,
            )

    def _take(self, client: str, name: str, amount: int) -> InFlightError | None:
        """Take it, or return why it does not fit."""
        limit = self._resources[name].per_request
        with self._lock:
            own = self._clients.get(client, Counter())
            for held, times, setting, whose in (
                (own[name], self._per_client, PER_CLIENT, "this client's requests"),
                (self._held[name], self._in_all, IN_ALL, "all requests"),
            ):
                if held + amount > limit * times:
                    return InFlightError(
                        f"{whose} in flight hold too many {name}",
                        field=self._resources[name].field,
                        expected=f"at most {limit * times} ({setting} = {times})",
                        got=held + amount,
                        remedy=f"Try again in {RETRY_AFTER_SECONDS} s.",
                    )
            self._clients.setdefault(client, own)[name] += amount
            self._held[name] += amount
        return None

    def _put_back(self, client: str, amounts: Mapping[str, int]) -> None:
        with self._lock:
            own = self._clients[client]
            for name, amount in amounts.items():
                own[name] -= amount
                self._held[name] -= amount
            if not any(own.values()):
                del self._clients[client]
            waiting = list(self._waiting)
        for waiter in waiting:
            waiter.wake()


@dataclass(eq=False)
class _Waiter:
    """A coroutine that waits until others give something back."""

    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    event: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.event.set)


class Account:
    """The claims of one request; a context manager that gives them back.

    Claims from the event loop may wait, those from a thread may not: threads that wait would stop other requests.
    """

    def __init__(self, ledger: Ledger, client: str) -> None:
        self._ledger, self._client = ledger, client
        self._claims: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._holders = 1

    def __enter__(self) -> Account:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def claim(self, name: str, amount: int) -> None:
        """Claim at once.

        Raises:
            LimitError: one request may not hold so much.
            InFlightError: it does not fit beside what other requests hold.
        """
        if not amount:
            return
        self._ledger._check_request(name, self._claims[name] + amount)
        if (refused := self._ledger._take(self._client, name, amount)) is not None:
            raise refused
        with self._lock:
            self._claims[name] += amount

    async def wait_for(self, name: str, amount: int) -> None:
        """Claim, and wait for other requests to end if it does not fit beside them.

        Raises:
            LimitError: one request may not hold so much.
            InFlightError: it still does not fit after the ledger's `wait_s` seconds.
        """
        ends = time.monotonic() + self._ledger._wait_s
        waiter: _Waiter | None = None
        try:
            while True:
                try:
                    return self.claim(name, amount)
                except InFlightError:
                    if (left := ends - time.monotonic()) <= 0:
                        raise
                if waiter is None:
                    waiter = self._queue()
                    continue  # something may have been given back before it queued
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(waiter.event.wait(), left)
                waiter.event.clear()
        finally:
            if waiter is not None:
                with self._ledger._lock:
                    self._ledger._waiting.discard(waiter)

    def give_back(self, name: str) -> None:
        """Give back all that it holds of a resource."""
        with self._lock:
            amount = self._claims.pop(name, 0)
        if amount:
            self._ledger._put_back(self._client, {name: amount})

    def hold(self) -> Callable[..., None]:
        """Keep the claims beyond the `with` block, until the returned function is called, with any arguments."""
        with self._lock:
            self._holders += 1
        return lambda *_: self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._holders -= 1
            claims = dict(self._claims) if not self._holders else {}
            if claims:
                self._claims.clear()
        if claims:
            self._ledger._put_back(self._client, claims)

    def _queue(self) -> _Waiter:
        waiter = _Waiter()
        with self._ledger._lock:
            self._ledger._waiting.add(waiter)
        return waiter
