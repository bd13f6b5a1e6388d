"""Token ids of the lean path are the reference's for every conversation of text and pictures; what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.open import open_bundle
from qwen3vl_edge.contract.errors import BundleError, ContractError, InputError
from qwen3vl_edge.edge_runtime.edge import Edge, EdgeOptions, open_edge
from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions
from qwen3vl_edge.edge_runtime.inputs.lean.chat_template import ChatTemplate
from qwen3vl_edge.edge_runtime.inputs.lean.processor import load_lean_processor, prepare_lean_prompt
from qwen3vl_edge.edge_runtime.inputs.prompt import Prompt, load_processor, prepare_prompt
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
AUDIO = "<|audio_pad|>"
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


def no_grid(grid: Grid) -> bool:
    return False


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
    ("lost tokens", "tokenizer_config.json", {"added_tokens_decoder": {}}, "leaves out <|endoftext|>"),
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
        load_lean_processor(replace(opened, path=tmp_path), no_grid)


def _saved_by_transformers(folder: Path) -> None:
    """processor_config.json alone, another tokenizer.json, and a tokenizer_config.json with other keys."""
    processor = AutoProcessor.from_pretrained(folder)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    processor.save_pretrained(folder)
    assert (folder / "processor_config.json").is_file()
    assert not (folder / "preprocessor_config.json").is_file()


def _plain_backend(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    _saved_by_transformers(folder)
    assert json.loads(file.read_text())["tokenizer_class"] == "TokenizersBackend"


def _plain_backend_splits_otherwise(folder: Path) -> None:
    """`TokenizersBackend` takes tokenizer.json as it is, where `Qwen2Tokenizer` splits by its own rule."""
    _plain_backend(folder)
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s|\S+"
    file.write_text(json.dumps(document))


def _tokens_of_the_config_alone(folder: Path) -> None:
    """As released checkpoints of Qwen3.5 have them: tokenizer.json does not list them."""
    document = json.loads((folder / "tokenizer.json").read_text())
    tokens = {item["id"]: item for item in document["added_tokens"]}
    first = max([*tokens, *document["model"]["vocab"].values()]) + 1
    tokens |= {
        first + index: {"content": token, "special": True} for index, token in enumerate(("<|audio_start|>", AUDIO))
    }
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"extra_special_tokens": {"audio_token": AUDIO}}
    config["added_tokens_decoder"] = {
        str(number): {key: value for key, value in item.items() if key != "id"} for number, item in tokens.items()
    }
    file.write_text(json.dumps(config))


def _template_of_the_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer_config.json"
    template = {"chat_template": (folder / "chat_template.jinja").read_text()}
    file.write_text(json.dumps(json.loads(file.read_text()) | template))
    (folder / "chat_template.jinja").unlink()


def _two_templates(folder: Path) -> None:
    """transformers prefers the older file."""
    template = (folder / "chat_template.jinja").read_text().replace("<|im_start|>", "<|im_start|> ")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))


@pytest.mark.parametrize(
    "save",
    [
        _saved_by_transformers,
        _plain_backend,
        _plain_backend_splits_otherwise,
        _tokens_of_the_config_alone,
        _template_of_the_tokenizer,
        _two_templates,
    ],
)
def test_processors_of_every_generation_run_leanly(
    save: Callable[[Path], None], bundle: Path, edge: Edge, tmp_path: Path
) -> None:
    opened = open_bundle(bundle, verify=False)
    folder = Path(shutil.copytree(opened.processor_path, tmp_path / "processor"))
    save(folder)
    clip = {"type": "video", "video": [Image.effect_noise((90, 70), 60).convert("RGB")] * 4}
    content = [
        {"type": "image", "image": PICTURE},
        clip,
        {"type": "text", "text": "I'll  sort 12 of é\n\n" + AUDIO + "<|im_end|>"},
    ]
    messages = [{"role": "user", "content": content}]
    lean = prepare_lean_prompt(messages, load_lean_processor(replace(opened, path=tmp_path), no_grid), edge.policy)
    reference = prepare_prompt(messages, load_processor(folder), edge.policy)
    assert lean.text.count("<|image_pad|>") == lean.media[0].grid.tokens(2)
    np.testing.assert_array_equal(lean.input_ids, reference.input_ids)
    for one, other in zip(lean.media, reference.media, strict=True):
        np.testing.assert_array_equal(one.input.values, other.input.values)
    usual = prepare_lean_prompt(messages, edge.lean, edge.policy)  # type: ignore[arg-type]
    same = save not in (_two_templates, _plain_backend_splits_otherwise, _tokens_of_the_config_alone)
    assert (lean.input_ids.tolist() == usual.input_ids.tolist()) is same


@pytest.mark.parametrize("saved", [False, True], ids=["own file", "processor_config.json"])
@pytest.mark.parametrize(
    ("changes", "leanly"),
    [
        ({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 0.004}, True),
        ({"do_normalize": False}, False),
        ({"temporal_patch_size": 1}, False),
        ({"video_processor_type": "Qwen2VLVideoProcessor"}, False),
    ],
)
def test_clips_are_normalised_by_the_video_processors_own_figures(
    changes: dict[str, Any], leanly: bool, saved: bool, bundle: Path, edge: Edge, tmp_path: Path
) -> None:
    """Wherever they are stored; of another processor than the released one they are the reference's to read."""
    opened = open_bundle(bundle, verify=False)
    folder = Path(shutil.copytree(opened.processor_path, tmp_path / "processor"))
    file = folder / "video_preprocessor_config.json"
    values = json.loads(file.read_text()) | changes
    if saved:
        file.unlink()
        (folder / "processor_config.json").write_text(json.dumps({"video_processor": values}))
    else:
        file.write_text(json.dumps(values))
    messages = [{"role": "user", "content": [{"type": "video", "video": [PICTURE, PICTURE.rotate(90)]}]}]
    lean = load_lean_processor(replace(opened, path=tmp_path), no_grid)
    assert lean.serves(messages) is leanly
    assert lean.serves([{"role": "user", "content": [{"type": "image", "image": PICTURE}]}])
    if leanly:
        found = prepare_lean_prompt(messages, lean, edge.policy).media[0].input.values
        expected = prepare_prompt(messages, load_processor(folder), edge.policy).media[0].input.values
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("option", ["add_bos_token", "split_special_tokens"])
def test_an_option_of_the_tokenizer_is_not_read_leanly(option: str, bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle, verify=False)
    file = Path(shutil.copytree(opened.processor_path, tmp_path / "processor")) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {option: True}))
    with pytest.raises(BundleError, match="option of its own"):
        load_lean_processor(replace(opened, path=tmp_path), no_grid)


def test_the_choice_of_path(bundle: Path, edge: Edge, reference: Path) -> None:
    assert edge.lean is not None  # auto
    with open_edge(bundle, EdgeOptions(preprocess="reference")) as opened:
        assert opened.lean is None
    with pytest.raises(InputError, match="preprocess"):
        open_edge(bundle, EdgeOptions(preprocess="fast"))
    with pytest.raises(InputError, match="uint8"):
        open_edge(bundle, EdgeOptions("pytorch", BackendOptions(model=reference), preprocess="lean-uint8"))
