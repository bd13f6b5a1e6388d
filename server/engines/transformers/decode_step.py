"""One decode step: the logits of every row's next token, computed where the rows' last tokens and lengths are.

On CUDA the step is one CUDA graph for each number of rows and columns; everywhere else, and where a model cannot be
captured, the same code runs as it is.
"""

from __future__ import annotations

import torch

from qwen3vl_edge.server.engines.transformers.captured_steps import CapturedSteps
from qwen3vl_edge.server.engines.transformers.kv_cache.sizes import columns_for, rows_for
from qwen3vl_edge.server.engines.transformers.kv_cache.slab import KvSlab
from qwen3vl_edge.server.engines.transformers.kv_cache.step_cache import step_cache
from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel


class DecodeStep:
    """The step and its inputs on the device, one place for each row.

    Args:
        rows: rows of the batch, at most.
        captured: CUDA graphs of the step; None to run it as it is.

    Attributes:
        ids: int64 [rows, 1], each row's last token.
        lengths: int64 [rows], its columns in use; 0 for a row that nobody has.
        deltas: int64 [rows], the offset of M-RoPE positions from the column (`rope_deltas`).
    """

    def __init__(self, loaded: LoadedModel, rows: int, captured: CapturedSteps | None) -> None:
        self.ids = torch.zeros(rows, 1, dtype=torch.int64, device=loaded.device)
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=loaded.device)
        self.deltas = torch.zeros(rows, dtype=torch.int64, device=loaded.device)
        self._loaded = loaded
        self._captured = captured

    def enter(self, row: int, length: int, delta: int) -> None:
        """Set a row's inputs; its last token is written to `ids`."""
        self.lengths[row] = length
        self.deltas[row] = delta

    def move(self, source: int, target: int) -> None:
        """Give a row's inputs to another row."""
        for values in (self.ids, self.lengths, self.deltas):
            values[target] = values[source]

    def leave(self, row: int) -> None:
        """Nobody has this row any more: what a captured step computes there goes to its first column."""
        self.lengths[row] = 0

    def run(self, slab: KvSlab, rows: int, width: int) -> torch.Tensor:
        """Logits [at least rows, vocabulary]; writes the new keys and values, and counts them in `lengths`.

        Args:
            width: columns that the longest row uses after this step.
        """
        logits = self.forward(slab, rows, width) if self._captured is None else self.capture(slab, rows, width)
        self.lengths[:rows] += 1
        return logits

    def capture(self, slab: KvSlab, rows: int, width: int) -> torch.Tensor:
        """`forward` as a CUDA graph of the next size that the table has; captured if it was not yet."""
        assert self._captured is not None
        tall, wide = min(rows_for(rows, self.lengths.numel()), slab.rows), min(columns_for(width), slab.columns)

        def trial() -> None:
            with slab.states_unchanged(tall):
                self.forward(slab, tall, wide)

        return self._captured.run((*slab.place, tall, wide), lambda: self.forward(slab, tall, wide), trial)

    def forward(self, slab: KvSlab, rows: int, columns: int) -> torch.Tensor:
        """Logits [rows, vocabulary].

        It changes no input: a second call writes the same keys and values to the same place. Only recurrent layers
        have moved on by then: `KvSlab.states_unchanged` takes them back.
        """
        ends = self.lengths[:rows]
        text = ends[:, None]
        vision = text + self.deltas[:rows, None]
        outputs = self._loaded.model(
            input_ids=self.ids[:rows],
            attention_mask=self._mask(ends, columns),
            position_ids=torch.stack([text, vision, vision, vision]),
            cache=step_cache(slab.views(rows, columns), ends),
            use_cache=True,
        )
        logits: torch.Tensor = outputs.logits[:, -1]
        return logits

    def _mask(self, ends: torch.Tensor, columns: int) -> torch.Tensor:
        """As the attention takes it: [rows, 1, 1, columns] for sdpa (bool) and eager (added), else [rows, columns]."""
        seen = torch.arange(columns, device=ends.device)[None] <= ends[:, None]
        if self._loaded.attention == "sdpa":
            return seen[:, None, None]
        if self._loaded.attention == "eager":
            lowest = torch.finfo(self._loaded.dtype).min
            hidden = torch.zeros(seen.shape, dtype=self._loaded.dtype, device=seen.device).masked_fill(~seen, lowest)
            return hidden[:, None, None]
        return seen.long()
