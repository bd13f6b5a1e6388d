"""How requests end: with their result, or with an error, after which the memory of what failed is given back."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch

from qwen3vl_edge.server.engines.transformers.decode_batch import DecodeBatch
from qwen3vl_edge.server.engines.transformers.kv_cache.prefix_cache import PrefixCache
from qwen3vl_edge.server.engines.transformers.out_of_memory import is_out_of_memory
from qwen3vl_edge.server.engines.transformers.sequence import Sequence
from qwen3vl_edge.server.errors import OutOfMemoryError

logger = logging.getLogger("server")


class Endings:
    """Belongs to the engine's thread.

    Args:
        device: of the model.
        prefixes: cleared when memory is short.
    """

    def __init__(self, device: torch.device, prefixes: PrefixCache) -> None:
        self._device = device
        self._prefixes = prefixes

    def finish(self, sequence: Sequence) -> None:
        """Set its result; the error that this meets, if it does."""
        try:
            sequence.finish()
        except BaseException as error:
            self.fail([sequence], error)

    def fail(self, sequences: Iterable[Sequence], error: BaseException) -> None:
        """Fail these requests; the engine continues.

        Raises:
            RuntimeError: the device fails at everything, as after an illegal access of memory; the requests have
                failed nevertheless.
        """
        failed, short = list(sequences), is_out_of_memory(error)
        if short:
            logger.error("out of memory with %d requests: %s", len(failed), error)
            error = OutOfMemoryError(
                "the server has no memory for this request", remedy="Send fewer or smaller pictures."
            )
        for sequence in failed:
            sequence.fail(error)
        if short:
            self.free_memory()
        self.wait_for_device()

    def free_memory(self) -> None:
        """Give back what nobody under way needs."""
        self._prefixes.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def wait_for_device(self) -> None:
        """Until the device has done what it was given: from then on the host's clock tells what that took."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def keep(self, batch: DecodeBatch, index: int) -> None:
        """Keep the prefix of a row that leaves, if it can be; its answer does not depend on it."""
        sequence = batch.rows[index].sequence
        length = batch.computed(index) - sequence.request.input_ids.size
        answer = sequence.ids[:length]
        if len(answer) < length:
            return  # states of tokens that the host has not read are of no prefix that it knows
        size = batch.layers_bytes(index)
        try:
            self._prefixes.keep(sequence.request, answer, sequence.client, size, lambda: batch.layers(index))
        except BaseException as error:
            self._prefixes.clear()
            if not is_out_of_memory(error):
                logger.warning("a prefix could not be kept: %s", error)
