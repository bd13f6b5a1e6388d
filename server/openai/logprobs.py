"""Log-probabilities as OpenAI's objects."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from qwen3vl_edge.server.engines.detokenize import decode

if TYPE_CHECKING:
    from qwen3vl_edge.server.engines.protocol import Token

LOWEST = -9999.0  # OpenAI's value for an impossible token; JSON has no infinity


def logprobs_of(tokens: tuple[Token, ...], tokenizer: Any) -> dict[str, Any]:
    """The `logprobs` of a choice, for these tokens of its text."""
    content = [
        {
            **_entry(token.id, token.logprob or 0.0, tokenizer),
            "top_logprobs": [_entry(number, value, tokenizer) for number, value in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(number: int, logprob: float, tokenizer: Any) -> dict[str, Any]:
    raw = token_bytes(number, tokenizer)
    text = decode(tokenizer, [number]) or raw.decode("utf-8", "replace")  # special tokens decode to empty text
    return {"token": text, "bytes": list(raw), "logprob": max(logprob, LOWEST)}


def token_bytes(number: int, tokenizer: Any) -> bytes:
    """The bytes of a byte-level BPE token; for an added token, its name."""
    name = str(tokenizer.convert_ids_to_tokens(number))
    table = _byte_of()
    if number in tokenizer.added_tokens_decoder or not all(letter in table for letter in name):
        return name.encode()
    return bytes(table[letter] for letter in name)


@cache
def _byte_of() -> dict[str, int]:
    """Byte-level BPE's mapping of characters to bytes: printable bytes are themselves, others start at U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}
