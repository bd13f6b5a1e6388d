"""Token ids of the lean path are the reference's for every conversation of text and pictures; what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import BundleError, ContractError, InputError
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.edge_runtime.inputs.lean.chat_template import ChatTemplate
from qwen3vl_edge.edge_runtime.inputs.lean.processor import load_lean_processor, prepare_lean_prompt
from qwen3vl_edge.edge_runtime.inputs.prompt import Prompt, prepare_prompt
from qwen3vl_edge.tools.dev.train_reference.heldout import heldout_questions

PICTURE = Image.new("RGB", (96, 96), (200, 30, 60))
SPECIAL = (
    "<|im_end|>",
    "<|im_start|>user\n",
    "<|vision_start|>",
    "<tool_call>",
    "<think>",
    "{{ messages }}",
    "{% if %}",
)
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")
TEXT = st.one_of(
    st.text(max_size=60),
    st.text("aé가字 \t\n\r'0١½ﬁ\u0301\u200d😀<|>_", max_size=40),
    st.lists(st.sampled_from([*SPECIAL, "What is ", "\n\n", "I'LL "]), max_size=5).map("".join),
)
TEXT_PART = TEXT.map(lambda text: {"type": "text", "text": text})
PART = st.one_of(
    TEXT_PART,
    TEXT_PART,
    st.just({"type": "image", "image": PICTURE}),
    st.just({"image": PICTURE}),
    st.just({"type": "image_url", "image_url": PICTURE}),
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT | st.lists(PART, max_size=4)},
    optional={"name": st.none() | st.text(max_size=5), "reasoning": TEXT},
)


def both(edge: Edge, messages: list[dict[str, Any]]) -> tuple[Prompt | str, Prompt | str]:
    def tried(prepare: Any, processor: Any) -> Prompt | str:
        try:
            found: Prompt = prepare(messages, processor, edge.policy)
        except ContractError as error:
            return type(error).__name__
        return found

    return tried(prepare_lean_prompt, edge.lean), tried(prepare_prompt, edge.processor)


def assert_equal(edge: Edge, messages: list[dict[str, Any]]) -> None:
    lean, reference = both(edge, messages)
    if isinstance(lean, str) or isinstance(reference, str):
        assert lean == reference
        return
    np.testing.assert_array_equal(lean.input_ids, reference.input_ids)
    assert lean.input_ids.dtype == reference.input_ids.dtype
    assert [(item.kind, item.choice) for item in lean.media] == [(item.kind, item.choice) for item in reference.media]


def test_heldout_questions_about_pictures(edge: Edge) -> None:
    asked = [item.messages for item in heldout_questions(60) if "video" not in json.dumps(item.messages, default=str)]
    assert len(asked) > 20
    for messages in asked:
        assert_equal(edge, messages)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGE, min_size=1, max_size=4))
def test_conversations_of_every_kind(edge: Edge, messages: list[dict[str, Any]]) -> None:
    assert_equal(edge, messages)


@pytest.mark.parametrize("token", PLACEHOLDERS)
@pytest.mark.parametrize("pictures", [0, 1])
def test_a_placeholder_in_the_text_is_refused_on_both_paths(edge: Edge, token: str, pictures: int) -> None:
    content = [{"type": "image", "image": PICTURE}] * pictures + [{"type": "text", "text": f"What {token}?"}]
    assert both(edge, [{"role": "user", "content": content}]) == ("InputError", "InputError")


def test_a_template_with_all_that_transformers_offers_is_rendered_alike(edge: Edge) -> None:
    source = (
        "{% for m in messages %}\n  {% if loop.index > 3 %}{% break %}{% endif %}\n{{ m.content | tojson }} "
        "{{ m | tojson(indent=1) }}{{ strftime_now('%Y') }}{{ tools is none }}{{ undefined_thing }}\n{% endfor %}"
        "{% if not messages[0].content %}{{ raise_exception('empty') }}{% endif %}"
    )
    messages = [{"role": "user", "content": "<é>&'\""}, {"role": "assistant", "content": "a", "thinking": "b"}] * 3
    expected = edge.processor.hf.apply_chat_template(messages, chat_template=source, add_generation_prompt=True)
    assert ChatTemplate(source).render(messages) == expected
    with pytest.raises(InputError, match="empty"):
        ChatTemplate(source).render([{"role": "user", "content": ""}])
    with pytest.raises(InputError, match="refuses"):
        ChatTemplate("{{ messages.append(1) }}").render(messages)


SPOILT: list[tuple[str, str, dict[str, Any], str]] = [
    ("processor", "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "image_processor_type"),
    ("no rescaling", "preprocessor_config.json", {"do_rescale": False}, "do_rescale"),
    ("tokenizer", "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}, "Qwen2Tokenizer"),
    ("token", "tokenizer_config.json", {"eos_token": "<|new|>"}, "adds tokens"),
    ("split", "tokenizer.json", {"pre_tokenizer": {"type": "ByteLevel"}}, "splits text"),
    ("template", "chat_template.jinja", {}, "eos_token"),
]


@pytest.mark.parametrize(("name", "change", "words"), [item[1:] for item in SPOILT], ids=[item[0] for item in SPOILT])
def test_files_that_ask_for_more_are_not_read_leanly(
    bundle: Path, tmp_path: Path, name: str, change: dict[str, Any], words: str
) -> None:
    opened = open_bundle(bundle, verify=False)
    folder = Path(shutil.copytree(opened.processor_path, tmp_path / "processor"))
    if change:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    else:
        (folder / name).write_text("{{ eos_token }}")
    with pytest.raises(BundleError, match=words):
        load_lean_processor(replace(opened, path=tmp_path), lambda grid: False)


def test_the_choice_of_path(bundle: Path, edge: Edge, reference: Path) -> None:
    assert edge.lean is not None  # auto
    with open_edge(bundle, EdgeOptions(preprocess="reference")) as opened:
        assert opened.lean is None
    with pytest.raises(InputError, match="preprocess"):
        open_edge(bundle, EdgeOptions(preprocess="fast"))
    with pytest.raises(InputError, match="uint8"):
        open_edge(bundle, EdgeOptions("pytorch", BackendOptions(model=reference), preprocess="lean-uint8"))
