"""`qwen3vl-edge` in vLLM's environment, with one more route on its server: log probabilities of a request.

The binary form does not carry how many of them are wanted, so the tests ask the engine itself, in the real process.
"""

from __future__ import annotations

from typing import Any

from qwen3vl_edge.contract.wire.codec import decode_request
from qwen3vl_edge.server import app as app_module
from qwen3vl_edge.server.engines.protocol import Token
from qwen3vl_edge.server.state import ServerState


def install_probe() -> None:
    """Put `POST /test/logprobs/{count}` on every app that is made from now on."""
    from dataclasses import replace

    from fastapi import Request
    from starlette.concurrency import run_in_threadpool

    create_app = app_module.create_app

    def with_probe(state: ServerState) -> Any:
        app = create_app(state)

        async def logprobs(request: Request, count: int) -> list[dict[str, Any]]:
            body = bytearray(await request.body())

            def ask() -> list[Token]:
                tokens: list[Token] = []
                engine = state.readiness.engine
                prepared = engine.prepare(replace(decode_request(body, engine.limits), logprobs=count))
                engine.submit(prepared, tokens.append).future.result()
                return tokens

            answer = await run_in_threadpool(ask)
            return [{"id": token.id, "logprob": token.logprob, "top": list(token.top)} for token in answer]

        # `from __future__ import annotations` hides the local name from FastAPI.
        logprobs.__annotations__ = {"request": Request, "count": int}
        app.post("/test/logprobs/{count}", response_model=None)(logprobs)
        return app

    app_module.create_app = with_probe


if __name__ == "__main__":
    from qwen3vl_edge.tools.cli.main import main

    install_probe()
    main()
