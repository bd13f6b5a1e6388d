"""An in-flight request of this engine: `Pending`, and how it stands in the decode batch."""

from __future__ import annotations

from qwen3vl_edge.server.engines.pending import Pending


class Sequence(Pending):
    """A request that this engine decodes itself.

    Attributes:
        complete: its last token has been added.
        pending: steps under way that choose a token for it.
    """

    complete = False
    pending = 0

    @property
    def tokens_at_most(self) -> int:
        """Most tokens that it may hold in the KV cache."""
        return self.request.input_ids.size + self.request.sampling.max_new_tokens

    @property
    def leaves(self) -> bool:
        """Whether it needs no further token."""
        return self.complete or self.over

    @property
    def exhausted(self) -> bool:
        """Whether the steps under way choose its last token."""
        return len(self.ids) + self.pending >= self.request.sampling.max_new_tokens

    @property
    def columns(self) -> int:
        """Tokens of prompt and answer whose keys and values are computed: all but the answer's last."""
        return self.request.input_ids.size + max(len(self.ids) - 1, 0)
