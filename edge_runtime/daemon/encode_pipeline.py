"""Preprocessing and encoding of requests, one thread each, so that they overlap.

While the encoder runs one request, the next is fetched, resized and tokenized, and earlier ones are being uploaded.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from qwen3vl_edge.contract.machine.free_memory import return_free_memory
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.daemon.camera_registry import CameraRegistry
from qwen3vl_edge.edge_runtime.daemon.openai_request import ChatMessage, fetch_messages
from qwen3vl_edge.edge_runtime.edge import Edge, EncodedPrompt, Prepared
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy

IDLE_POLL_SECONDS = 0.05


class EncodePipeline:
    """Owns an opened edge; `close` frees it.

    Attributes:
        engine_memory: bytes by place: "host", the growth of this process while the edge was opened and tested, and
            "device", as the backend reports it, 0 where it does not.
    """

    def __init__(self, edge: Edge, access: AccessPolicy, cameras: Sequence[CameraConfig] = ()) -> None:
        self.edge = edge
        self._access = access
        self.engine_memory = {"host": 0, "device": 0}
        self._encoding = 0  # accessed in the event loop only
        # Tokenizers, processors and most backends are not thread-safe.
        self._prepare = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._encode = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self.cameras = CameraRegistry(cameras, edge, self._encode.submit)

    async def encode(self, chat: list[ChatMessage], sampling: Sampling) -> EncodedPrompt:
        """Fetch, preprocess and encode a conversation.

        Raises:
            InputError, LimitError, BucketError: media or messages that cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._encoding += 1
        try:
            prepared = await loop.run_in_executor(self._prepare, self._prepared, chat)
            return await loop.run_in_executor(self._encode, lambda: self.edge.embed(prepared, sampling, stream=True))
        finally:
            self._encoding -= 1

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
            self.edge.encoder.run(serves.buckets[0], patches).to_fp16()
            return
        height, width = self.edge.policy.geometry.pixels(grid) if grid is not None else (64, 64)
        picture = Image.linear_gradient("L").resize((width, height)).convert("RGB")
        message = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]}
        self.edge.embed(self.edge.prepare([message]))

    async def close_when_idle(self) -> None:
        """Close once no request is being encoded; for a pipeline that gets no new requests."""
        while self._encoding:
            await asyncio.sleep(IDLE_POLL_SECONDS)
        await asyncio.to_thread(self.close)
        await asyncio.to_thread(gc.collect)
        await asyncio.to_thread(return_free_memory)

    def close(self) -> None:
        self.cameras.close()
        for pool in (self._prepare, self._encode):
            pool.shutdown(wait=True, cancel_futures=True)
        self.edge.encoder.close()

    def _prepared(self, chat: list[ChatMessage]) -> Prepared:
        scratch = Path(tempfile.mkdtemp(prefix="qwen3vl-edge-"))
        try:
            return self.edge.prepare(fetch_messages(chat, self._access, scratch, self.cameras))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
