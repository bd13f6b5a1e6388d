"""The pictures and clips that a client's request names, opened without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qwen3vl_edge.contract.formats.picture_files import client_formats
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy, MediaSource
from qwen3vl_edge.edge_runtime.inputs.sources.clip_header import check_clip
from qwen3vl_edge.edge_runtime.inputs.sources.clips import ClipFile, write_clip
from qwen3vl_edge.edge_runtime.inputs.sources.download import Take, fetch
from qwen3vl_edge.edge_runtime.inputs.sources.limits import MediaLimits
from qwen3vl_edge.edge_runtime.inputs.sources.pictures import FILE_FORMATS, Picture, measure_picture
from qwen3vl_edge.edge_runtime.inputs.sources.read import check_scheme, read_source

AT_ONCE = 4  # of one request
# Few: base64 and headers of pictures are parsed in Python, and the event loop waits for its turn.
_OPENERS = ThreadPoolExecutor(2, thread_name_prefix="open")


async def open_sources(
    sources: Sequence[MediaSource], access: AccessPolicy, limits: MediaLimits, scratch: Path, take: Take
) -> list[Picture | ClipFile]:
    """Pictures and files of clips, checked, not decoded, in the order of `sources`; cancelled, all fetches end.

    Args:
        access: its `timeout_s` is for all of them together.
        limits: how many pixels a picture, or a frame of a clip, may have.
        scratch: a folder for clips that are not files already.
        take: called with each downloaded piece before it is kept; may raise.

    Raises:
        InputError, LimitError: one that may not or cannot be read.
    """
    gate = asyncio.Semaphore(AT_ONCE)
    ends = asyncio.get_running_loop().time() + access.timeout_s

    async def open_one(source: MediaSource) -> Picture | ClipFile:
        async with gate:
            check_scheme(source, access)
            content: bytes | Path | None = None
            if source.scheme in ("http", "https"):
                content = await fetch(source, access, take, ends - asyncio.get_running_loop().time())
            return await asyncio.get_running_loop().run_in_executor(
                _OPENERS, _opened, source, content, access, limits, scratch
            )

    tasks = [asyncio.create_task(open_one(source)) for source in sources]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _opened(
    source: MediaSource, content: bytes | Path | None, access: AccessPolicy, limits: MediaLimits, scratch: Path
) -> Picture | ClipFile:
    if content is None:
        content = read_source(source, access)
    if source.kind == "image":
        formats = client_formats() if isinstance(content, bytes) else FILE_FORMATS  # files are the operator's own
        return measure_picture(content, source.label, formats, limits)
    path = content if isinstance(content, Path) else write_clip(content, scratch)
    check_clip(path, source.label, limits)
    return ClipFile(path, source.label)
