"""Preprocessing and encoding of requests, one thread each, so that they overlap.

While the encoder runs one request, the next is resized and tokenized, earlier ones are being uploaded, and the pictures
of later ones are fetched: a slow web server holds up its own request alone.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from qwen3vl_edge.contract.bundle.encoder_input import EncoderInput
from qwen3vl_edge.contract.http.ledger import BODY_BYTES, PIXELS, VISUAL_TOKENS, Account
from qwen3vl_edge.contract.machine.free_memory import return_free_memory
from qwen3vl_edge.contract.machine.startup_objects import exclude_from_collections
from qwen3vl_edge.contract.pixels.processor_arguments import NO_ARGUMENTS, ProcessorArguments
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.daemon.camera_registry import CameraRegistry
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatMessage, media_sources, qwen_messages
from qwen3vl_edge.edge_runtime.daemon.worker_thread import WorkerThread
from qwen3vl_edge.edge_runtime.edge import Edge, EncodedPrompt, Prepared
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy
from qwen3vl_edge.edge_runtime.inputs.sources.clips import ClipFile
from qwen3vl_edge.edge_runtime.inputs.sources.fetch import open_sources
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaBudget
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import Picture

IDLE_POLL_SECONDS = 0.05


class EncodePipeline:
    """Owns an opened edge; `close` frees it.

    Args:
        prepare_s: seconds that the media of one request may take to be prepared, the setting `stall_s`.

    Attributes:
        engine_memory: bytes by place: "host", the growth of this process while the edge was opened and tested, and
            "device", as the backend reports it, 0 where it does not.
    """

    def __init__(
        self,
        edge: Edge,
        access: AccessPolicy,
        cameras: Sequence[CameraConfig] = (),
        prepare_s: float | None = None,
    ) -> None:
        self.edge = edge
        self._access = access
        self._prepare_s = prepare_s
        self.engine_memory = {"host": 0, "device": 0}
        self._encoding = 0  # accessed in the event loop only
        # Tokenizers, processors and most backends are not thread-safe.
        self._prepare = WorkerThread("prepare")
        self._encode = WorkerThread("encode")
        self.cameras = CameraRegistry(cameras, edge, self._encode.submit)

    async def encode(
        self,
        chat: Sequence[ChatMessage],
        sampling: Sampling,
        account: Account,
        arguments: ProcessorArguments = NO_ARGUMENTS,
    ) -> EncodedPrompt:
        """Fetch, preprocess and encode a conversation. Cancelled, it ends as soon as a thread can end.

        Args:
            account: claims what it holds; a thread that cannot end at once holds on to the claims.
            arguments: limits of pictures and clips in place of the bundle's.

        Returns:
            Without the pixels (`media`), which are no longer needed.

        Raises:
            InputError, LimitError, BucketError: media or messages that cannot be used.
        """
        self._encoding += 1
        budget = MediaBudget(
            self.edge.options.media_limits, partial(account.claim, VISUAL_TOKENS), self._prepare_s, "stall_s"
        )
        try:
            prepared = await self._prepared(chat, account, budget, arguments)
            embedding = self._encode.submit(partial(self.edge.embed, prepared, sampling, stream=True))
            embedding.add_done_callback(account.hold())
            return replace(await asyncio.wrap_future(embedding), media=())
        finally:
            budget.abandon()
            self._encoding -= 1

    async def _prepared(
        self, chat: Sequence[ChatMessage], account: Account, budget: MediaBudget, arguments: ProcessorArguments
    ) -> Prepared:
        sources = media_sources(chat)
        with ExitStack() as stack:
            scratch = Path(tempfile.gettempdir())
            if any(source.kind == "video" for source in sources):
                scratch = Path(tempfile.mkdtemp(prefix="qwen3vl-edge-"))
                stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            take = partial(_claim_bytes, account)
            opened = await open_sources(sources, self._access, self.edge.options.media_limits, scratch, take)
            await account.wait_for(PIXELS, sum(item.pixels for item in opened if isinstance(item, Picture)))
            preparing = self._prepare.submit(self._prepare_messages, chat, opened, budget, arguments)
            held = stack.pop_all()
            preparing.add_done_callback(lambda _: held.close())
        preparing.add_done_callback(account.hold())
        prepared = await asyncio.wrap_future(preparing)
        account.give_back(PIXELS)
        return prepared

    def _prepare_messages(
        self,
        chat: Sequence[ChatMessage],
        opened: Sequence[Picture | ClipFile],
        budget: MediaBudget,
        arguments: ProcessorArguments,
    ) -> Prepared:
        return self.edge.prepare(qwen_messages(chat, opened, self.cameras), budget, arguments)

    def stuck(self) -> tuple[str, float]:
        """Name of the thread that has been at the same work for longest, and for how many seconds."""
        return max(((worker.name, worker.stuck_s) for worker in self._workers), key=lambda found: found[1])

    @property
    def _workers(self) -> tuple[WorkerThread, ...]:
        return self._prepare, self._encode

    def self_test(self) -> None:
        """Preprocess and encode a generated picture, so that a broken encoder is detected before the first request.

        Raises:
            ContractError: the encoder cannot be used; has the reason.
        """
        from PIL import Image

        serves = self.edge.encoder.serves
        grid = next((bucket for bucket in serves.buckets if bucket.t == 1), None)
        if grid is None and not serves.dynamic:  # clips alone
            patches = np.zeros((serves.buckets[0].patches, self.edge.bundle.manifest.vision.patch_values), np.float32)
            self.edge.encode_items([EncoderInput(serves.buckets[0], patches)])
            return
        height, width = self.edge.policy.geometry.pixels(grid) if grid is not None else (64, 64)
        picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        part = {"type": "image", "image": picture, "resized_height": height, "resized_width": width}
        message = {"role": "user", "content": [part, {"type": "text", "text": "?"}]}
        self.edge.embed(self.edge.prepare([message]))

    async def close_when_idle(self) -> None:
        """Close once no request is being encoded; for a pipeline that gets no new requests."""
        while self._encoding:
            await asyncio.sleep(IDLE_POLL_SECONDS)
        await asyncio.to_thread(self.close)
        await asyncio.to_thread(_forget)

    def close(self) -> None:
        self.cameras.close()
        for worker in self._workers:
            worker.close()
        self.edge.encoder.close()


async def _claim_bytes(account: Account, chunk: bytes) -> None:
    await account.wait_for(BODY_BYTES, len(chunk))


def _forget() -> None:
    """Give the memory of a closed pipeline back to the system."""
    gc.unfreeze()
    exclude_from_collections()
    return_free_memory()
