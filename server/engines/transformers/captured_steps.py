"""Decode steps as CUDA graphs: a step is one launch in place of several hundred."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from qwen3vl_edge.server.engines.transformers.language_model import LoadedModel
from qwen3vl_edge.server.engines.transformers.out_of_memory import is_out_of_memory

logger = logging.getLogger("server")

RETRY_STEPS = 1000  # until a capture for which there was no memory is tried again
MAX_GRAPHS = 64  # each holds its launches and, in the pool, what its step computes with
Key = tuple[int, ...]


def captured_steps(loaded: LoadedModel, wanted: bool) -> CapturedSteps | None:
    """None where steps run as they are: not wanted, no GPU, or layers on several devices."""
    if loaded.device.type != "cuda" or not wanted:
        return None
    if not loaded.on_one_gpu:
        logger.info("decode steps run uncaptured: the model is on several devices")
        return None
    return CapturedSteps(loaded.device)


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    logits: torch.Tensor


class CapturedSteps:
    """CUDA graphs by key, captured on first use; belongs to the engine's thread.

    All of them share one pool of memory: they run one after another, and the logits of one are read before the next
    starts. A step that cannot be captured runs as it is, from then on without another try.

    Args:
        device: the CUDA device of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed: str | None = None
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: OrderedDict[Key, _Captured] = OrderedDict()
        self._uncaptured: dict[Key, int] = {}  # steps that each of these is still run as it is
        self._memory: int | None = None

    def run(self, key: Key, step: Callable[[], torch.Tensor], trial: Callable[[], object]) -> torch.Tensor:
        """The step's result; valid until the next call.

        Args:
            key: which memory the step works on, then its sizes.
            step: counts once for each call of `run`.
            trial: calls the step in such a way that it does not count.
        """
        if self.failed is not None:
            return step()
        if key[0] != self._memory:  # the graphs of other memory write to what is no longer there
            self._graphs.clear()
            self._uncaptured.clear()
            self._memory = key[0]
        held = self._graphs.get(key) or self._first_use(key, step, trial)
        if held is None:
            return step()
        self._graphs.move_to_end(key)
        held.graph.replay()
        return held.logits

    def _first_use(self, key: Key, step: Callable[[], torch.Tensor], trial: Callable[[], object]) -> _Captured | None:
        """Capture the step; None if there is no memory for it, now or a short while ago, or it cannot be captured."""
        if left := self._uncaptured.get(key, 0):
            self._uncaptured[key] = left - 1
            return None
        try:
            held = self._capture(step, trial)
        except RuntimeError as error:
            if is_out_of_memory(error):
                self._uncaptured[key] = RETRY_STEPS
                logger.warning("no memory to capture a decode step of %s: it runs uncaptured for a while", key)
            else:
                self.failed = " ".join(str(error).split())[:200]
                logger.warning("decode steps run uncaptured, as this model cannot be captured: %s", self.failed)
            return None
        self._graphs[key] = held
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return held

    def _capture(self, step: Callable[[], torch.Tensor], trial: Callable[[], object]) -> _Captured:
        stream, current = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                trial()  # libraries make their workspaces at the first call, which a capture does not allow
        finally:
            current.wait_stream(stream)  # what a failed call has begun writes to the slab too
        graph = torch.cuda.CUDAGraph()
        # The outer context returns to this stream: `graph` does not where the end of a capture fails. Other threads
        # use CUDA too, for requests that come in.
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
        ):
            logits = step()
        return _Captured(graph, logits)
