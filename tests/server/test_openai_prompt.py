"""A chat's token ids are the device's for the same conversation; tools and their calls go through the template."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.contract.wire.embedding_hash import embedding_hash
from qwen3vl_edge.contract.wire.request import Limits, MediaEmbeddings
from qwen3vl_edge.edge_runtime.daemon.upstreams.openai_server import image_embeds
from qwen3vl_edge.server.engines.protocol import GenerateResult, Timings, Token
from qwen3vl_edge.server.engines.transformers.language_model import model_shape
from qwen3vl_edge.server.openai.logprobs import token_bytes
from qwen3vl_edge.server.openai.parts import PartReader
from qwen3vl_edge.server.openai.prompt import PromptWriter
from qwen3vl_edge.server.openai.request import ChatRequest, parse_chat
from qwen3vl_edge.server.openai.text_stream import Ending, TextPiece, TextStream
from qwen3vl_edge.server.openai.tool_calls import parse_calls
from qwen3vl_edge.server.options import ServerOptions
from tests.support.http_api.tools import TOOLS, WEATHER
from tests.support.openai_parts import REFERENCE, chat_of, part_of, processor, questions, torch_saved

SHAPE = model_shape(open_checkpoint(str(REFERENCE)))
TOKENIZER = AutoTokenizer.from_pretrained(REFERENCE)


def body(messages: list[dict[str, Any]], **options: Any) -> bytes:
    return json.dumps({"messages": messages, **options}).encode()


def parsed(content: bytes) -> ChatRequest:
    """With a server's default limits."""
    options = ServerOptions(model="unused")
    return parse_chat(content, options.max_chat_values, options.max_text_kib * 1024)


def ids_of(messages: list[dict[str, Any]], limits: Limits = Limits()) -> Any:
    chat = parsed(body(messages))
    return PromptWriter(TOKENIZER, SHAPE, limits).write(chat, PartReader(SHAPE, limits).read(chat.messages))


@pytest.mark.parametrize("name", list(questions()))
def test_ids_are_the_devices(name: str) -> None:
    question = questions()[name]
    np.testing.assert_array_equal(ids_of(chat_of(question, "vllm")), question.prompt.input_ids)


def test_ids_of_a_long_conversation_are_the_devices() -> None:
    from PIL import Image

    from qwen3vl_edge.edge_runtime.inputs.prompt import prepare_prompt
    from tests.support.pixel_policies import native_policy

    shown, plain = questions()["colour"], Image.new("RGB", (96, 96))
    said = [
        {"role": "system", "content": "Be brief. 한국어 é\u0301 <think>"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour?"}, {"type": "image"}]},
        {"role": "assistant", "content": " Yellow.\n"},
        {"role": "user", "content": "<|im_end|>\n{{ messages }}"},
    ]
    device = [{**turn, "content": _filled(turn["content"], {"type": "image", "image": plain})} for turn in said]
    expected = prepare_prompt(device, processor(), native_policy())
    hashed = {"image_grid_thw": expected.media[0].grid.as_list(), "hash": "a" * 64}
    sent = [
        {**turn, "content": _filled(turn["content"], {"type": "image_embeds", "image_embeds": hashed})} for turn in said
    ]
    np.testing.assert_array_equal(ids_of(sent), expected.input_ids)
    sent[0]["role"] = "developer"
    np.testing.assert_array_equal(ids_of(sent), expected.input_ids)
    assert shown.media


def _filled(content: Any, part: dict[str, Any]) -> Any:
    return [part if item == {"type": "image"} else item for item in content] if isinstance(content, list) else content


def test_placeholders_in_the_text_are_refused() -> None:
    for token in ("<|image_pad|>", "<|video_pad|>"):
        with pytest.raises(InputError, match="placeholders"):
            ids_of([{"role": "user", "content": f"What {token}?"}])


def test_a_text_beyond_all_limits_is_not_tokenized() -> None:
    with pytest.raises(ContractError, match="prompt tokens"):
        ids_of([{"role": "user", "content": "x" * 100_000}], Limits(max_prompt_tokens=10))


def rendered(messages: list[dict[str, Any]], template: str = TOOLS, **options: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    tokenizer.chat_template = template
    return PromptWriter(tokenizer, SHAPE, Limits()).render(parsed(body(messages, **options)))


ASKED = {"role": "user", "content": "Weather?"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"서울", "n":1.0}'}}
    ],
}
TOLD = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}


def test_tools_and_calls_go_through_the_template() -> None:
    text = rendered([ASKED, CALLED, TOLD], tools=[WEATHER], tool_choice="auto")
    assert text == (
        f"<|im_start|>system\n# Tools\n{json.dumps(WEATHER)}<|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "서울", "n": 1.0}}\n'
        "</tool_call><|im_end|>\n<|im_start|>tool\nrain<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "# Tools" not in rendered([ASKED], tools=[WEATHER], tool_choice="none")


def test_a_template_without_tools_does_not_drop_them_in_silence() -> None:
    plain = str(TOKENIZER.chat_template)
    with pytest.raises(InputError, match="no tools"):
        rendered([ASKED], plain, tools=[WEATHER])
    with pytest.raises(InputError, match="calls of tools"):
        rendered([ASKED, {**CALLED, "content": "Hm."}], plain)
    with pytest.raises(InputError, match="refuses the messages"):
        rendered([ASKED], "{{ raise_exception('no') }}")


BLOCK = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln }", "n": 1.50}}\n</tool_call>'
BAD_CALLS = [
    "<tool_call>\nweather\n</tool_call>",
    BLOCK + " and more",
    BLOCK.replace("weather", "other"),
    BLOCK.replace("1.50", "NaN"),
    BLOCK.replace("1.50}", "1.50"),
    BLOCK.replace("</tool_call>", ""),
    BLOCK.replace('{"city"', '["city"'),
]


def test_calls_are_taken_only_where_they_are_exact() -> None:
    calls = parse_calls(f"\n{BLOCK}\n{BLOCK}", {"weather"}, "r")
    assert calls is not None
    assert [call["id"] for call in calls] == ["call_r_0", "call_r_1"]
    assert calls[0]["function"] == {"name": "weather", "arguments": '{"city": "Köln }", "n": 1.50}'}
    for text in BAD_CALLS:
        assert parse_calls(text, {"weather"}, "r") is None


class Letters:
    """A detokenizer for which a token is its character; -1 is half a character, which the next one completes."""

    def __init__(self) -> None:
        self._half = False

    def add(self, token_id: int) -> str:
        self._half = token_id == -1
        return "" if token_id in (-1, 0) else chr(token_id)

    def finish(self) -> str:
        return "\ufffd" if self._half else ""


def streamed(ids: list[int], result_text: str, stops: tuple[str, ...] = (), tools: tuple[str, ...] = ()) -> Any:
    """Text, ids of its tokens, and the ending of an answer with end token 0."""
    stream = TextStream(Letters(), stops, tools, (0,), "r")  # type: ignore[arg-type]
    streamed_pieces: list[TextPiece | None] = [stream.add(Token(number)) for number in ids]
    result = GenerateResult(tuple(ids), result_text, "stop", 1, 0, Timings(0, 0, 0))
    ending: Ending = stream.finish(result)
    pieces = [piece for piece in (*streamed_pieces, ending.last_piece) if piece is not None]
    return "".join(p.text for p in pieces), [token.id for p in pieces for token in p.tokens], ending


def test_each_piece_has_its_tokens() -> None:
    a, b, c = (ord(letter) for letter in "abc")
    assert streamed([a, b, 0], "ab")[:2] == ("ab", [a, b])
    assert streamed([a, -1, b, 0], "ab")[:2] == ("ab", [a, -1, b])
    assert streamed([a, -1], "a\ufffd")[:2] == ("a\ufffd", [a, -1])
    assert streamed([a, b, c], "a", stops=("bc",))[:2] == ("a", [a])
    assert streamed([a, b, a, 0], "aba", stops=("bc",))[:2] == ("aba", [a, b, a])
    assert streamed([a, -1], "a", stops=("\ufffd",))[:2] == ("a", [a])


@pytest.mark.parametrize("before", ["", "Let me see.\n"])
def test_calls_are_held_back_until_they_are_known_to_be_calls(before: str) -> None:
    text = before + BLOCK
    shown, _, ending = streamed([*map(ord, text), 0], text, tools=("weather",))
    assert (shown, ending.finish_reason) == (before.rstrip("\n"), "tool_calls")
    assert ending.calls[0]["function"]["name"] == "weather"
    for bad in BAD_CALLS:
        shown, tokens, ending = streamed([*map(ord, before + bad), 0], before + bad, tools=("weather",))
        assert (shown, ending.calls, ending.finish_reason) == (before + bad, [], "stop")
        assert tokens == [*map(ord, before + bad)]
    cut = streamed([*map(ord, text)], text[:-12], stops=("</tool_call",), tools=("weather",))
    assert (cut[0], cut[2].calls) == (text[:-12], [])


def test_bytes_of_tokens() -> None:
    for text in ("한국어 é\n\t x", "<|im_end|>"):
        ids = TOKENIZER(text)["input_ids"]
        assert b"".join(token_bytes(number, TOKENIZER) for number in ids) == text.encode()


def test_a_body_of_empty_messages_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ContractError, match=r"too many JSON values.*50000 \(max_chat_values\)"):
        parsed(b'{"messages":[' + b"{}," * 100_001 + b"{}]}")


def test_the_text_of_a_chat_is_limited_wherever_it_stands() -> None:
    long, tool = "é" * 300, {"type": "function", "function": {"name": "f", "arguments": json.dumps({"a": "x" * 600})}}
    described = {"type": "function", "function": {"name": "f", "description": long}}
    for messages, options in (
        ([{"role": "user", "content": long}], {}),
        ([{"role": "user", "content": [{"type": "text", "text": long[:150]}] * 2}], {}),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [tool]}], {}),
        ([{"role": "user", "content": "?"}], {"tools": [described]}),
    ):
        with pytest.raises(ContractError, match=r"too much text.*at most 500 bytes \(max_text_kib\)") as found:
            parse_chat(body(messages, **options), 1000, 500)
        assert found.value.status == 413
        assert parse_chat(body(messages, **options), 1000, 800)


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_picture_that_the_template_does_not_show(role: str) -> None:
    """Qwen's template writes only the text of others than the user."""
    tokenizer = AutoTokenizer.from_pretrained(REFERENCE)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'user' %}"
        "{{ message.content }}{% else %}{% for part in message.content %}{% if 'text' in part %}{{ part.text }}"
        "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    )
    part = part_of(questions()["colour"].media[0], "safetensors", SHAPE.model_hash)
    chat = parsed(body([{"role": role, "content": [part]}, {"role": "user", "content": "?"}]))
    writer = PromptWriter(tokenizer, SHAPE, Limits())
    with pytest.raises(InputError, match=f"shows no picture or clip here.*got one in a message of the {role}") as found:
        writer.write(chat, PartReader(SHAPE, Limits()).read(chat.messages))
    assert found.value.field == "messages.0.content.0.image_embeds"


def test_arguments_are_counted_before_they_are_parsed() -> None:
    """Their brackets may be escaped in the body, where they are counted first."""
    arguments = "[" * 20_000
    call = '{"type":"function","function":{"name":"f","arguments":"' + "\\u005b" * len(arguments) + '"}}'
    content = '{"messages":[{"role":"user","content":"?"},{"role":"assistant","tool_calls":[' + call + "]}]}"
    chat = parsed(content.encode())
    assert chat.messages[1].tool_calls is not None
    assert chat.messages[1].tool_calls[0].function.arguments == arguments
    with pytest.raises(ContractError, match="too many JSON values"):
        PromptWriter(TOKENIZER, SHAPE, Limits()).render(chat)


def test_the_daemons_own_parts_are_read_to_the_bit() -> None:
    """What `edge --server-kind openai` sends."""
    item = questions()["colour"].media[0]
    half = MediaEmbeddings(
        "image", item.grid, item.embeds.astype("f2"), tuple(level.astype("f2") for level in item.deepstack)
    )
    for sent in (item, half):
        chat = parsed(body([{"role": "user", "content": [image_embeds(sent)]}]))
        found = PartReader(SHAPE, Limits()).read(chat.messages)[0].media
        assert isinstance(found, MediaEmbeddings)
        assert embedding_hash(found, "x") == embedding_hash(sent, "x")


def test_embeddings_are_measured_by_their_grid_before_they_are_decoded() -> None:
    item = questions()["colour"].media[0]
    part = part_of(item, "safetensors", SHAPE.model_hash)
    part["image_embeds"]["image_embeds"] = torch_saved(np.zeros((10_000, 192), np.float32))
    with pytest.raises(ContractError, match="larger than its grid") as caught:
        ids_of([{"role": "user", "content": [part]}])
    assert caught.value.field == "messages.0.content.0.image_embeds.image_embeds"
