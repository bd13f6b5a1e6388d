"""A generation as server-sent events.

    data: {"token_id": 88, "text": "An"}        one per token; `text` is the text it adds, empty inside a character
    data: {"token_id": null, "text": "…"}       only if the answer ends inside a character
    data: {"request_id": …, "generated_ids": […], "text": …, "finish_reason": …, "usage": …, "timings": …}
    data: [DONE]

The `text` of the steps concatenates to the `text` of the last event, which is the answer object of a request without
`stream`. An error during the stream is one event `{"error": {…}}`, then `[DONE]`. Comment lines (`:`) keep the
connection open while a request waits.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from qwen3vl_edge.contract.http.errors import as_contract_error
from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.generation.answer_json import answer, trace_phases
from qwen3vl_edge.server.generation.live_generation import LiveGeneration

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Engine

KEEP_ALIVE = ": waiting\n\n"
DONE = "data: [DONE]\n\n"


async def event_stream(engine: Engine, request: GenerateRequest, generation: LiveGeneration) -> AsyncIterator[str]:
    """The events of a stream, in the form of the module's docstring."""
    detokenizer = engine.detokenizer()
    async for token in generation.log.follow():
        if token is None:
            yield KEEP_ALIVE
        else:
            yield _event({"token_id": token.id, "text": detokenizer.add(token.id)})
    try:
        result = generation.result
    except Exception as error:
        yield _event(as_contract_error(error, request.request_id).to_openai())
    else:
        if rest := detokenizer.finish():
            yield _event({"token_id": None, "text": rest})
        yield _event(answer(request, result, engine.loaded))
        trace_phases(result)
    yield DONE


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
