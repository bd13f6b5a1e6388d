"""The server's own errors, in addition to the contract's."""

from __future__ import annotations

from qwen3vl_edge.contract.errors import ContractError, ServerUnavailableError, WireError


class BodySchemaError(WireError):
    """A JSON body that parses but has a missing, unknown or wrongly typed field."""

    status = 422
    code = "bad_json_body"


class ShuttingDownError(ServerUnavailableError):
    """The server is shutting down and accepts no more requests."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class OutOfMemoryError(ServerUnavailableError):
    """The GPU or CPU has no memory for this request; the server continues."""

    code = "out_of_memory"


class GenerationTimeoutError(ContractError):
    """A generation took longer than this server allows and was cancelled."""

    status = 504
    code = "generation_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "the generation took too long",
            expected=f"at most {seconds:g} s",
            remedy="Ask for fewer tokens, or try again when the server has less to do.",
        )


class PromptChangedError(ContractError):
    """The engine's prompt differs from the request's; its answer is discarded."""

    status = 500
    code = "prompt_changed"

    def __init__(self, expected: int, got: int) -> None:
        super().__init__(
            "the engine read other token ids than the request's, so its answer would not be the model's answer to it",
            field="input_ids",
            expected=f"{expected} tokens as sent",
            got=f"{got} tokens",
            remedy="Use a release of the engine that docs/guides/server/vllm.md names, or --engine transformers.",
        )


class EmbeddingsNotHeldError(WireError):
    """Embeddings named by hashes that are not, or no longer, in this server's store.

    Attributes:
        missing: those hashes; the error object contains them too.
    """

    status = 404
    code = "embeddings_not_held"

    def __init__(self, field: str, missing: tuple[str, ...]) -> None:
        super().__init__(
            "embeddings named by hash are not in the server's store",
            field=field,
            got=f"{len(missing)} unknown, {missing[0]} first",
            remedy="Send them with their tensors.",
        )
        self.missing = missing

    def to_openai(self) -> dict[str, object]:
        body = super().to_openai()
        error = body["error"]
        assert isinstance(error, dict)
        return {"error": {**error, "missing": list(self.missing)}}
