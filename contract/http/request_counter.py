"""Count responses by route and status."""

from __future__ import annotations

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OTHER = "other"


class RequestCounter:
    """ASGI middleware; unknown paths share one label, so that a scanner cannot create new ones."""

    def __init__(self, app: ASGIApp, requests: Counter, routes: tuple[str, ...]) -> None:
        self._app = app
        self._requests = requests
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = next((route for route in self._routes if _matches(scope["path"], route)), OTHER)

        answered = False

        async def counting(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                self._requests.labels(endpoint, str(message["status"])).inc()
            await send(message)

        try:
            await self._app(scope, receive, counting)
        except Exception:
            if not answered:  # an outer layer sends the 500, which is not visible here
                self._requests.labels(endpoint, "500").inc()
            raise


def _matches(path: str, route: str) -> bool:
    """Whether a path matches a route; `/{id}` at its end matches one path segment."""
    if not route.endswith("/{id}"):
        return path == route
    start, _, last = path.rpartition("/")
    return start == route.removesuffix("/{id}") and last != ""
