"""Incremental text: whole characters only, and together exactly what decoding everything gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3vl_edge.server.engines.detokenize import Detokenizer, decode
from tests.support.server_checkpoint import tokenizer

TOKENIZER = tokenizer()
TEXTS = [
    "plain words",
    "그림에 무엇이 있나요? 뷁쇍",
    "emoji 👩‍🚀 and 🇰🇷",
    "e\u0301 \u00a0 \n\n tabs\t",
    "mixed 한a국b어",
    "",
]


def pieces(ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(TOKENIZER)
    return [*(detokenizer.add(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(text: str) -> None:
    parts = pieces(TOKENIZER.encode(text))
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts)


def test_character_over_several_tokens_comes_once_complete() -> None:
    ids = TOKENIZER.encode("뷁")
    assert len(ids) == 3
    assert pieces(ids) == ["", "", "뷁", ""]


def test_special_tokens_have_no_text() -> None:
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    assert pieces([*TOKENIZER.encode("a"), end]) == ["a", "", ""]


def test_cut_character_is_shown_as_replacement_at_the_end() -> None:
    assert pieces(TOKENIZER.encode("뷁")[:2]) == ["", "", "\ufffd"]


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_tokens_join_to_what_decoding_all_gives(ids: list[int]) -> None:
    assert "".join(pieces(ids)) == (decode(TOKENIZER, ids) if ids else "")
