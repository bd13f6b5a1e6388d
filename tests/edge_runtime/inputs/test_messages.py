"""The forms of a conversation: nothing of it is dropped, and what cannot be used is an error that says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.edge_runtime.inputs.lean.chat_template import ChatTemplate
from qwen3vl_edge.edge_runtime.inputs.messages import checked_messages, hidden_media
from qwen3vl_edge.edge_runtime.inputs.messages_file import read_conversations
from qwen3vl_edge.edge_runtime.inputs.prompt import prepare_prompt
from tests.support.run_cli import run_here

PICTURE = Image.new("RGB", (64, 64), (200, 30, 30))
# What the released checkpoints' template does with a message of the system or the assistant (chat_template.json of
# Qwen/Qwen3-VL-2B-Instruct): only its text.
TEXT_OF_OTHERS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if message.role == 'user' and (part.type == 'image' or 'image' in part) %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image(**more: Any) -> dict[str, Any]:
    return {"type": "image", "image": PICTURE, **more}


REFUSED: dict[str, tuple[Any, str]] = {
    "no list": ("abc", "messages are empty or not a list"),
    "nothing": ([], "messages are empty"),
    "no message": ([5], r"messages\[0\] is malformed"),
    "no role": ([{"content": "x"}], r"messages\[0\] is malformed"),
    "no content": ([{"role": "user", "content": None}], r"messages\[0\] is malformed"),
    "content of another type": ([{"role": "user", "content": 5}], r"content is malformed"),
    "a part of another type": (user(5), r"content\[0\] has no content"),  # type: ignore[arg-type]
    "nothing in a part": (user({"type": "image", "image": None}), r"content\[0\] has no content"),
    "text beside a picture": (user(image(text="What?")), "more than one content: expected one, got text and image"),
    "a picture beside a clip": (user(image(video="a.mp4")), "got image and video"),
    "another type than it says": (user({"type": "video", "image": PICTURE}), "expected video, got image"),
    "text of a number": (user({"type": "text", "text": 5}), "text is not a string: expected a string, got int"),
    "pixels as text": (user(image(min_pixels="4096")), r"min_pixels is not such a number: .*got '4096'"),
    "no height": (user(image(resized_height=0, resized_width=64)), "resized_height is not such a number.*got 0"),
    "nan": (user(image(max_pixels=float("nan"))), "max_pixels is not such a number"),
    "a truth": (user(image(fps=True)), "fps is not such a number"),
    "endless": (user(image(max_pixels=10**400)), "max_pixels is not such a number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_forms_are_refused_at_both_doors(edge: Edge, tmp_path: Path, name: str) -> None:
    messages, words = REFUSED[name]
    for prepare in (edge.prepare, lambda given: prepare_prompt(given, edge.processor, edge.policy)):
        with pytest.raises(InputError, match=words):
            prepare(messages)


def test_what_is_null_is_not_there(edge: Edge) -> None:
    """As tables of a data set write it: every part has every column."""
    plain = user(image(), {"type": "text", "text": "What?"})
    columns = user(image(text=None, video=None), {"type": "text", "text": "What?", "image": None, "video": None})
    assert checked_messages(columns) == plain
    expected = edge.prepare(plain).prompt
    for found in (edge.prepare(columns).prompt, prepare_prompt(columns, edge.processor, edge.policy)):
        assert np.array_equal(found.input_ids, expected.input_ids)
        assert len(found.media) == 1


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_picture_that_the_template_does_not_show(edge: Edge, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    messages = [{"role": role, "content": [image()]}, {"role": "user", "content": "What?"}]
    error = hidden_media(messages)
    assert error is not None
    assert f"one in a message of the {role}" in str(error)
    assert hidden_media(user(image())) is None
    assert edge.lean is not None
    monkeypatch.setattr(edge.processor.hf, "chat_template", TEXT_OF_OTHERS)
    monkeypatch.setattr(edge, "lean", replace(edge.lean, template=ChatTemplate(TEXT_OF_OTHERS)))
    for prepare in (edge.prepare, lambda given: prepare_prompt(given, edge.processor, edge.policy)):
        with pytest.raises(InputError, match=f"shows no picture or clip here.*of the {role}.*message of the user"):
            prepare(messages)


WRONG_FILES = {
    "a number": "5",
    "no messages": "{}",
    "messages of numbers": '{"messages": [1, 2]}',
    "content of a number": '{"messages": [{"role": "user", "content": 5}]}',
    "a part of a number": '{"messages": [{"role": "user", "content": [5]}]}',
    "pixels as text": '{"messages": [{"role": "user", "content": [{"image": "a.png", "min_pixels": "4096"}]}]}',
    "no height": '{"messages": [{"role": "user", "content": [{"image": "a.png", "resized_height": 0}]}]}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_line_of_wrong_types_is_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "x"}]}\n' + WRONG_FILES[name] + "\n")
    with pytest.raises(InputError, match=r"questions.jsonl:2") as caught:
        read_conversations(file, "--prompts")
    assert caught.value.field == "--prompts"


def test_media_of_a_file_are_beside_it(tmp_path: Path) -> None:
    parts = [
        {"type": "image", "image": "a.png"},
        {"type": "image_url", "image_url": {"url": "b.png"}},
        {"type": "video", "video": ["c.png", "/d.png"]},
        {"type": "image", "image": "DATA:image/png;base64,AAAA"},
        {"type": "image", "image": "https://example.org/e.png"},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": parts}]}))
    ((_, messages),) = read_conversations(file, "--prompts")
    assert messages[0]["content"] == [
        {"type": "image", "image": f"{tmp_path}/a.png"},
        {"type": "image_url", "image_url": {"url": f"{tmp_path}/b.png"}},
        {"type": "video", "video": [f"{tmp_path}/c.png", "/d.png"]},
        *parts[3:],
    ]


def test_the_command_says_it_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "messages.json"
    for content in ("[1, 2]", '{"a": 1}', '[{"role": "user", "content": [{"type": "text", "text": 5}]}]'):
        file.write_text(content)
        result = run_here("ask", "What?", "--bundle", str(tmp_path), "--messages", str(file))
        assert result.returncode == 2
        assert len(result.stderr.strip().splitlines()) == 1
        assert "messages.json" in result.stderr
