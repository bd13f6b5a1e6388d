"""A finished generation as the JSON object of the answer, and the model as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qwen3vl_edge.contract.http.tracing import spans_until_now
from qwen3vl_edge.contract.wire.request import GenerateRequest

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import GenerateResult, ServedModel


def answer(request: GenerateRequest, result: GenerateResult, loaded: ServedModel) -> dict[str, Any]:
    """The answer of `POST /v1/generate`, and the last event of its stream."""
    return {
        "request_id": request.request_id,
        "model": loaded.name,
        "model_hash": loaded.shape.model_hash,
        "generated_ids": list(result.generated_ids),
        "text": result.text,
        "finish_reason": result.finish_reason,
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "visual_tokens": result.visual_tokens,
            "reused_tokens": result.reused_tokens,
            "completion_tokens": len(result.generated_ids),
        },
        "timings": {name: round(seconds, 6) for name, seconds in asdict(result.timings).items()},
    }


def model_facts(loaded: ServedModel) -> dict[str, Any]:
    """The served model, for `/v1/models` and `/readyz`."""
    return {
        "model_hash": loaded.shape.model_hash,
        **loaded.describe(),
        "hidden_size": loaded.shape.hidden_size,
        "deepstack_levels": loaded.shape.deepstack_levels,
        "merge_size": loaded.shape.merge_size,
        "max_positions": loaded.max_positions,
    }


def trace_phases(result: GenerateResult) -> None:
    """Record the phases of a generation that ends now as spans; a no-op without tracing."""
    times = result.timings
    spans_until_now(
        {"queue": times.queue_s, "prefill": times.prefill_s, "decode": times.decode_s},
        prompt_tokens=result.prompt_tokens,
        visual_tokens=result.visual_tokens,
        reused_tokens=result.reused_tokens,
        completion_tokens=len(result.generated_ids),
    )
