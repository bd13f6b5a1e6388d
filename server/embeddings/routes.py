"""`/v1/embeddings/{sha256}`: upload embeddings ahead of the request that names them, and query the store."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response

from qwen3vl_edge.contract.bundle.model_hash import model_mismatch
from qwen3vl_edge.contract.errors import LimitError, WireError
from qwen3vl_edge.contract.http.body import Body, content_type, read_body
from qwen3vl_edge.contract.http.ledger import VISUAL_TOKENS
from qwen3vl_edge.contract.wire.basis import Bases
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, decode_medium
from qwen3vl_edge.contract.wire.embedding_hash import HASH_FORM, check_hash, is_hash
from qwen3vl_edge.contract.wire.request import MediaEmbeddings
from qwen3vl_edge.contract.wire.validate import validate_medium
from qwen3vl_edge.server import openapi
from qwen3vl_edge.server.errors import EmbeddingsNotHeldError
from qwen3vl_edge.server.http.identity import client_of
from qwen3vl_edge.server.state import ServerState

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine

PATH = "/v1/embeddings/{name}"
# The pattern is for the OpenAPI document; `_check_name` raises this API's error.
Name = Annotated[str, Path(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]


def embedding_routes(state: ServerState) -> APIRouter:
    """PUT, GET and HEAD for one hash."""
    router, store = APIRouter(), state.store

    @router.put(PATH, openapi_extra=openapi.HOLD, responses={201: {"description": "Held from now on"}})
    async def put(request: Request, name: Name) -> Response:
        """Store one picture's embeddings: 201, or 200 if they were already stored."""
        _check_name(name)
        engine = state.readiness.engine
        content_type(request, CONTENT_TYPE)
        namespace = client_of(request).name
        most, timeout_s = engine.limits.max_body_bytes, state.options.body_timeout_s

        def hold(body: Body, claim: Callable[[int], None]) -> int:
            medium = _checked_medium(body, name, engine, state.bases, claim)
            known = store.find(name, namespace) is not None
            if not store.keep(medium, namespace):
                raise LimitError(
                    "embeddings are larger than the server's store",
                    field="body",
                    expected=f"at most {store.max_bytes} bytes",
                    got=medium.nbytes,
                )
            return 200 if known else 201

        with state.ledger.open(client_of(request).turn) as account:
            body = await read_body(request, most, timeout_s, zstd=True, account=account)
            status = await state.decode(partial(hold, body, partial(account.claim, VISUAL_TOKENS)))
        return JSONResponse({"hash": name, "held": True}, status_code=status)

    @router.head(PATH, include_in_schema=False)
    @router.get(PATH)
    async def held(request: Request, name: Name) -> dict[str, Any]:
        """Description of the embeddings stored under a hash, without tensors; 404 if there are none."""
        _check_name(name)
        if (medium := await state.decode(partial(store.describe, name, client_of(request).name))) is None:
            raise EmbeddingsNotHeldError("path", (name,))
        return _describe(name, medium)

    return router


def _checked_medium(
    body: Body, name: str, engine: Engine, bases: Bases, claim: Callable[[int], None]
) -> MediaEmbeddings:
    """Decode a body, and validate it against the hash `name` and the served model.

    Raises:
        ContractError: the body is invalid.
    """
    shape = engine.loaded.shape
    medium, model_hash = decode_medium(body, engine.limits, bases, model=shape, claim=claim)
    if model_hash != shape.model_hash:
        raise model_mismatch("the embeddings were made for another model", "model_hash", shape.model_hash, model_hash)
    if medium.hash != name:
        raise WireError("the body's hash differs from the path's", field="media.0.hash", expected=name)
    validate_medium(medium, shape, engine.limits)
    check_hash("media.0.hash", medium, shape.model_hash)
    return medium


def _check_name(name: str) -> None:
    if not is_hash(name):
        raise WireError("invalid embedding hash", field="path", expected=HASH_FORM, got=repr(name)[:80])


def _describe(name: str, medium: MediaEmbeddings) -> dict[str, Any]:
    return {
        "hash": name,
        "grid": medium.grid.as_list(),
        "dtype": "F16" if medium.embeds.dtype.itemsize == 2 else "F32",
        "shape": list(medium.embeds.shape),
        "levels": len(medium.deepstack),
        "bytes": medium.nbytes,
    }
