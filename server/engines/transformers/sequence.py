"""An in-flight request of this engine: `Pending` with its own sampler."""

from __future__ import annotations

from qwen3vl_edge.contract.wire.request import GenerateRequest
from qwen3vl_edge.server.engines.pending import Pending
from qwen3vl_edge.server.engines.protocol import OnToken
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.sampler import Sampler


class Sequence(Pending):
    """A request that this engine decodes itself."""

    def __init__(self, request: GenerateRequest, loaded: LoadedModel, on_token: OnToken | None, client: str) -> None:
        super().__init__(request, loaded, on_token, client)
        self._device = loaded.device
        self._sampler: Sampler | None = None

    @property
    def tokens_at_most(self) -> int:
        """Most tokens that it may hold in the KV cache."""
        return self.request.input_ids.size + self.request.sampling.max_new_tokens

    def begin(self) -> None:
        super().begin()
        self._sampler = Sampler(self.request, self._device)

    def advance(self, logits: object) -> bool:
        """Choose the next token from the last position's logits [vocabulary]; True once the answer is complete.

        Raises:
            Exception: raised by its `on_token`.
        """
        assert self._sampler is not None
        return self.add(self._sampler.pick(logits, self.ids))  # type: ignore[arg-type]
