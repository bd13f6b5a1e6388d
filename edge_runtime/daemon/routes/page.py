"""The web page: static files of the package."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request, Response

from qwen3vl_edge.contract.formats.picture_files import client_media_types
from qwen3vl_edge.contract.http.errors import HttpError

ROUTES = ("/",)  # metrics count its assets as "other"
FOLDER = Path(__file__).parents[1] / "page"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# No inline script or style, no frame around it, and no address but this daemon's own.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # stored but revalidated: a new version shows at once
}


def page_routes() -> APIRouter:
    """`/` and its assets, read once."""
    router = APIRouter()
    files = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in _KINDS}
    # Named one by one, so that a phone which keeps HEIC converts it where the daemon cannot read it.
    files["index.html"] = files["index.html"].replace(b"image/*", ",".join(client_media_types()).encode())

    @router.get("/")
    async def page(request: Request) -> Response:
        """The page."""
        return _answer(request, "index.html", files["index.html"])

    @router.get("/page/{name}")
    async def asset(request: Request, name: str) -> Response:
        """Its scripts, style and icon."""
        if name not in files:
            raise HttpError(404, "not_found", "no such file of the page", field="path", got=repr(name)[:80])
        return _answer(request, name, files[name])

    return router


def _answer(request: Request, name: str, content: bytes) -> Response:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}
    etags = [item.strip().removeprefix("W/") for item in request.headers.get("if-none-match", "").split(",")]
    if tag in etags:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=f"{_KINDS[Path(name).suffix]}", headers=headers)
