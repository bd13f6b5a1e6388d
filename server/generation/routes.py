"""`POST /v1/generate`: token ids and embeddings in, generated tokens out; `DELETE` drops a stored answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.http.body import Body, content_type, read_body
from qwen3vl_edge.contract.http.errors import HttpError
from qwen3vl_edge.contract.http.idempotency_key import HEADER, idempotency_key
from qwen3vl_edge.contract.http.ledger import JSON_VALUES, VISUAL_TOKENS, Account
from qwen3vl_edge.contract.wire.codec import CONTENT_TYPE, decode_request
from qwen3vl_edge.contract.wire.embedding_hash import check_hash
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, MediaReference
from qwen3vl_edge.server.generate_json import decode_json
from qwen3vl_edge.server.generation.answer_json import answer, trace_phases
from qwen3vl_edge.server.generation.keyed import fingerprint
from qwen3vl_edge.server.generation.lifecycle import admit, respond, start_or_join
from qwen3vl_edge.server.generation.live_generation import LiveGeneration, start_generation
from qwen3vl_edge.server.generation.streaming import event_stream
from qwen3vl_edge.server.http.identity import client_of, request_id_of
from qwen3vl_edge.server.http.json_body import read_json
from qwen3vl_edge.server.openapi import FORGET, GENERATE, JSON
from qwen3vl_edge.server.state import ServerState

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine

PATH = "/v1/generate"
MAX_REQUEST_ID = 128


def generation_routes(state: ServerState) -> APIRouter:
    """POST and DELETE of `/v1/generate`."""
    router = APIRouter()

    @router.post(PATH, openapi_extra=GENERATE)
    async def generate(request: Request) -> Response:
        """Answer a prompt whose pictures are embeddings: JSON, or server-sent events with `stream`."""
        admitted = admit(request, state)
        engine, client = admitted.engine, admitted.client
        with admitted.account as account:
            prepared = await _read_request(request, engine, state, account)
            start = partial(start_generation, engine, prepared, partial(state.metrics.record, client.name), client.turn)
            generation, detach = await start_or_join(state.keyed, admitted, partial(fingerprint, prepared), start)
        stream = event_stream(engine, prepared, generation) if prepared.stream else None
        return await respond(request, generation, detach, stream, partial(_complete, prepared, generation, engine))

    @router.delete(PATH, status_code=204, openapi_extra=FORGET)
    async def forget(request: Request) -> Response:
        """Drop the answer of this Idempotency-Key; 204, whether or not the key is known."""
        key = idempotency_key(request.headers)
        if key is None:
            raise HttpError(400, "bad_idempotency_key", f"missing {HEADER} header", field=HEADER)
        state.keyed.forget(key, client_of(request).name)
        return Response(status_code=204)

    return router


async def _read_request(request: Request, engine: Engine, state: ServerState, account: Account) -> GenerateRequest:
    """Read and validate a request in either of the two content types.

    Raises:
        ContractError: the request is invalid.
    """
    kind = content_type(request, CONTENT_TYPE, JSON)
    limits, options = engine.limits, state.options
    claim = partial(account.claim, VISUAL_TOKENS)
    if kind == JSON:
        most, values = options.most_json_bytes(limits), options.max_json_values
        body = await read_json(request, state, account, most, values, "max_json_values")
        prepared = await state.parse(lambda: decode_json(body, engine.loaded.shape, limits, engine.prepare, claim))
        account.give_back(JSON_VALUES)
    else:
        content = await read_body(request, limits.max_body_bytes, options.body_timeout_s, zstd=True, account=account)
        state.metrics.received_bytes.inc(request.state.received_bytes)
        namespace = client_of(request).name
        prepared = await state.decode(lambda: _binary_request(content, engine, state, namespace, claim))
    return _with_request_id(prepared, request_id_of(request))


def _binary_request(
    body: Body, engine: Engine, state: ServerState, namespace: str, claim: Callable[[int], None]
) -> GenerateRequest:
    """Decode and validate a request; load media named by hash from the store, add media sent with a hash to it."""
    looked_up: list[MediaEmbeddings] = []
    shape = engine.loaded.shape

    def lookup(references: Sequence[MediaReference]) -> list[MediaEmbeddings]:
        looked_up.extend(state.store.lookup(references, namespace, shape))
        return looked_up

    decoded = decode_request(body, engine.limits, lookup, state.bases, model=shape, claim=claim)
    prepared = engine.prepare(decoded)
    for index, item in enumerate(prepared.media):
        if not any(item is known for known in looked_up):  # stored media were validated when they were added
            check_hash(f"media.{index}.hash", item, engine.loaded.shape.model_hash)
    state.store.keep_all(prepared, namespace)
    return prepared


def _with_request_id(request: GenerateRequest, otherwise: str) -> GenerateRequest:
    if len(request.request_id) > MAX_REQUEST_ID:
        raise WireError(
            "request_id is too long",
            field="request_id",
            expected=f"at most {MAX_REQUEST_ID} characters",
            got=len(request.request_id),
        )
    return request if request.request_id else replace(request, request_id=otherwise)


async def _complete(prepared: GenerateRequest, generation: LiveGeneration, engine: Engine) -> dict[str, Any]:
    """Wait for the generation to end and return its answer."""
    await generation.log.wait()
    result = generation.result
    trace_phases(result)
    return answer(prepared, result, engine.loaded)
