"""Errors a user can act on: each names the input, the expected and the actual value, and the remedy.

The CLI prints `str(error)` on one line and exits with code 2; the server answers with
`ContractError.status` and an OpenAI-style error object built from the same fields.
"""

from __future__ import annotations


class ContractError(ValueError):
    """Bad input at a boundary of the project.

    Args:
        message: one sentence that names the input and the limit it broke.
        field: the field, file or option at fault (`"input_ids"`, `"--buckets"`, a path).
        expected: what would have been accepted.
        got: the actual value.
        remedy: what to do about it.
    """

    status: int = 400
    code: str = "invalid_request"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        expected: object = None,
        got: object = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.expected = expected
        self.got = got
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [self.message]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.got is not None:
            parts.append(f"got {self.got}")
        text = ": ".join([parts[0], ", ".join(parts[1:])]) if len(parts) > 1 else parts[0]
        if self.remedy:
            text = f"{text}. {self.remedy}"
        return " ".join(text.split())

    def to_openai(self) -> dict[str, object]:
        """The body of an OpenAI-style error answer."""
        return {
            "error": {
                "message": str(self),
                "type": "invalid_request_error" if self.status < 500 else "server_error",
                "param": self.field,
                "code": self.code,
            }
        }


class InputError(ContractError):
    """An input file, message or option that cannot be used."""

    code = "bad_input"


class BucketError(ContractError):
    """No bucket for this grid, or a bucket that the vision configuration does not allow."""

    code = "bad_bucket"


class BundleError(ContractError):
    """A bundle that is missing, truncated, altered or of another schema."""

    code = "bad_bundle"


class CheckpointError(ContractError):
    """A model folder that is missing, incomplete or not a Qwen3-VL."""

    code = "bad_checkpoint"


class ParityError(ContractError):
    """A graph whose outputs differ from PyTorch by more than its tolerance."""

    code = "parity"


class EngineError(ContractError):
    """An engine that cannot be built, or a plan that cannot run here."""

    code = "bad_engine"


class WireError(ContractError):
    """A request body that breaks the wire format."""

    code = "bad_wire_format"


class ModelMismatchError(ContractError):
    """Embeddings made with another model than the server runs."""

    status = 409
    code = "model_mismatch"


class LimitError(ContractError):
    """A request that is well formed but larger than this server accepts."""

    status = 413
    code = "limit_exceeded"


class ServerUnavailableError(ContractError):
    """The server cannot be reached, or is not ready."""

    status = 503
    code = "server_unavailable"


class QueueFullError(LimitError):
    """Too many requests are already waiting.

    Attributes:
        retry_after: whole seconds after which trying again makes sense.
    """

    status = 429
    code = "queue_full"

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__("the queue is full", got=f"{waiting} waiting", remedy=f"Try again in {retry_after} s.")
        self.retry_after = retry_after


class KeyReusedError(ContractError):
    """An idempotency key was reused with another request; neither request may get the other's answer."""

    status = 409
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__(
            "this key was sent with another request",
            field="Idempotency-Key",
            remedy="Use a new key for each new request.",
        )


class InternalError(ContractError):
    """A fault of the server or daemon; the client gets only the request's id."""

    status = 500
    code = "internal_error"
