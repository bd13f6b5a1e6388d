"""Lines of an event stream. They end with a line feed and nothing else: str.splitlines, and so httpx's `iter_lines`,
would also cut at U+0085, U+2028 and U+2029, which an answer's text may hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator


class LineCutter:
    """Bytes in, complete lines out. What a broken connection leaves of a line is no line."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, chunk: bytes) -> list[str]:
        """The lines that this chunk completes, without their ends."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines]


def lines_of(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines of a body that is read as it comes."""
    cutter = LineCutter()
    for chunk in chunks:
        yield from cutter.add(chunk)


async def async_lines_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The same, asynchronously."""
    cutter = LineCutter()
    async for chunk in chunks:
        for line in cutter.add(chunk):
            yield line
