"""One model has one hash, whoever saved it; whatever changes embeddings or token ids changes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    AutoVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.model_hash import model_mismatch
from qwen3vl_edge.contract.bundle.processor_files import chat_template, image_normalization, video_normalization
from tests.support.paths import REFERENCE

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}\n"


def hash_of(folder: Path) -> str:
    return Checkpoint(folder, "m").model_hash


def edit(file: Path, **values: Any) -> None:
    """Set keys of a JSON file; None takes one out."""
    document = json.loads(file.read_text()) if file.is_file() else {}
    document = {name: value for name, value in (document | values).items() if value is not None}
    file.write_text(json.dumps(document))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The reference checkpoint as the released ones are: processor files apart, as transformers 4 wrote them."""
    ignored = shutil.ignore_patterns("README.md", "heldout.json")
    return Path(shutil.copytree(REFERENCE, tmp_path / "model", ignore=ignored))


@pytest.fixture(scope="module")
def expected() -> str:
    return hash_of(REFERENCE)


def test_transformers_saves_it_again(folder: Path, tmp_path: Path, expected: str) -> None:
    """`save_pretrained` of transformers 5 writes other files, other keys and another tokenizer.json."""
    again = tmp_path / "again"
    Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).save_pretrained(again)
    AutoProcessor.from_pretrained(folder).save_pretrained(again)
    assert not (again / "preprocessor_config.json").is_file()
    assert (again / "tokenizer.json").read_bytes() != (folder / "tokenizer.json").read_bytes()
    assert {value.dtype for value in load_file(again / "model.safetensors").values()} == {torch.float32}
    assert hash_of(again) == expected


def _older_config(folder: Path) -> None:
    """As transformers 4.57 spelled it, and without what is a default."""
    document = json.loads((folder / "config.json").read_text())
    rope = document["text_config"].pop("rope_parameters")
    theta = rope.pop("rope_theta")
    document["text_config"] |= {"rope_scaling": rope, "rope_theta": theta, "torch_dtype": "float16"}
    document["transformers_version"] = "4.57.0.dev0"
    vision = document["vision_config"]
    vision["model_type"] = "qwen3_vl"
    for name in ("rope_parameters", "in_channels", "patch_size", "spatial_merge_size", "temporal_patch_size"):
        vision.pop(name, None)
    (folder / "config.json").write_text(json.dumps(document))
    assert Qwen3VLConfig.from_pretrained(folder).vision_config.rope_parameters["rope_theta"] == 10000.0


def _older_tokenizer(folder: Path) -> None:
    """Merges as text, `Fast` in the class's name, tokens repeated in tokenizer_config.json."""
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"] |= {"merges": [" ".join(pair) for pair in document["model"]["merges"]], "fuse_unk": True}
    document["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    (folder / "tokenizer.json").write_text(json.dumps(document, indent=3))
    decoder = {str(item["id"]): {k: v for k, v in item.items() if k != "id"} for item in document["added_tokens"]}
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="Qwen2TokenizerFast",
        added_tokens_decoder=decoder,
        additional_special_tokens=["<|im_start|>", "<|image_pad|>"],
    )


def _vocabulary_files(folder: Path) -> None:
    """vocab.json and merges.txt alone, as slow tokenizers were saved."""
    _older_tokenizer(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *model["merges"], ""]))
    (folder / "tokenizer.json").unlink()


def _plain_backend(folder: Path) -> None:
    """A tokenizer that transformers 5 calls TokenizersBackend."""
    edit(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not isinstance(tokenizer, PreTrainedTokenizerFast) or type(tokenizer).__name__ == "TokenizersBackend"
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"


def _template_as(name: str) -> Callable[[Path], None]:
    def move(folder: Path) -> None:
        text = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").unlink()
        edit(folder / name, chat_template=text)

    return move


def _named_templates(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": text}, {"name": "tool_use", "template": TEMPLATE}]
    edit(folder / "tokenizer_config.json", chat_template=named)


SAME: dict[str, Callable[[Path], None]] = {
    "config of transformers 4": _older_config,
    "tokenizer of transformers 4": _older_tokenizer,
    "vocab.json and merges.txt": _vocabulary_files,
    "TokenizersBackend": _plain_backend,
    "template in chat_template.json": _template_as("chat_template.json"),
    "template in processor_config.json": _template_as("processor_config.json"),
    "template in tokenizer_config.json": _template_as("tokenizer_config.json"),
    "named templates": _named_templates,
    "one number for all channels": lambda folder: edit(folder / "preprocessor_config.json", image_mean=0.5),
    "limits": lambda folder: edit(folder / "preprocessor_config.json", size={"shortest_edge": 1, "longest_edge": 9}),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_the_same_model_otherwise_written(change: Callable[[Path], None], folder: Path, expected: str) -> None:
    ids = AutoTokenizer.from_pretrained(folder)("I'll sort 12 <|im_end|>é\n")["input_ids"]
    change(folder)
    assert hash_of(folder) == expected
    assert AutoTokenizer.from_pretrained(folder)("I'll sort 12 <|im_end|>é\n")["input_ids"] == ids


def _tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        tensors = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edited


FC2 = "model.visual.blocks.5.mlp.linear_fc2.weight"


def _edit_tokenizer(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        document = json.loads((folder / "tokenizer.json").read_text())
        change(document)
        (folder / "tokenizer.json").write_text(json.dumps(document))

    return edited


def _swap_ids(document: dict[str, Any]) -> None:
    vocabulary = document["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def _vision(**values: Any) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        document["vision_config"] |= values
        (folder / "config.json").write_text(json.dumps(document))

    return edited


def _template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _moved(name: str) -> Callable[[Path], None]:
    """Another template at a place that wins over chat_template.jinja."""
    return lambda folder: edit(folder / name, chat_template=TEMPLATE)


OTHER: dict[str, Callable[[Path], None]] = {
    "first value": _tensors(lambda tensors: tensors[FC2].view(-1)[0].add_(0.5)),
    "last value": _tensors(lambda tensors: tensors[FC2].view(-1)[-1].add_(0.5)),
    "rounded": _tensors(lambda tensors: tensors.update({name: v.bfloat16() for name, v in tensors.items()})),
    "activation": _vision(hidden_act="gelu"),
    "order of DeepStack": _vision(deepstack_visual_indexes=[3, 1, 4]),
    "rotary base": _vision(rope_parameters={"rope_type": "axial", "rope_theta": 5000.0}),
    "id of a visual token": lambda folder: edit(folder / "config.json", image_token_id=491),
    "ids of two tokens": _edit_tokenizer(_swap_ids),
    "order of merges": _edit_tokenizer(lambda document: document["model"]["merges"].reverse()),
    "an added token": _edit_tokenizer(lambda document: document["added_tokens"][-1].update(content="<|other|>")),
    "a token before a text": lambda folder: edit(
        folder / "tokenizer_config.json", add_bos_token=True, bos_token="<|im_start|>"
    ),
    "template": _template,
    "template in chat_template.json": _moved("chat_template.json"),
    "template in processor_config.json": _moved("processor_config.json"),
    "image mean": lambda folder: edit(folder / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.4]),
    "image std": lambda folder: edit(folder / "preprocessor_config.json", image_std=[0.5, 0.5, 0.4]),
    "video mean": lambda folder: edit(folder / "video_preprocessor_config.json", image_mean=[0.4, 0.5, 0.5]),
    "video std": lambda folder: edit(folder / "video_preprocessor_config.json", image_std=[0.4, 0.5, 0.5]),
    "mean in processor_config.json": lambda folder: edit(
        folder / "processor_config.json", image_processor={"image_mean": [0.1, 0.2, 0.3]}
    ),
    "not normalized": lambda folder: edit(folder / "preprocessor_config.json", do_normalize=False),
}


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER.keys())
def test_another_model(change: Callable[[Path], None], folder: Path, expected: str) -> None:
    change(folder)
    assert hash_of(folder) != expected


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("preprocessor_config.json", {}),
        ("preprocessor_config.json", {"image_mean": None, "image_std": None}),
        ("video_preprocessor_config.json", {"image_mean": None, "image_std": [0.1, 0.2, 0.3]}),
        ("processor_config.json", {"image_processor": {"image_mean": [0.1, 0.2, 0.3]}}),
        ("processor_config.json", {"video_processor": {"image_std": [0.1, 0.2, 0.3]}}),
    ],
)
def test_mean_and_std_are_those_that_transformers_loads(name: str, values: dict[str, Any], folder: Path) -> None:
    edit(folder / name, **values)
    for ours, upstream in ((image_normalization, AutoImageProcessor), (video_normalization, AutoVideoProcessor)):
        normalization, processor = ours(folder), upstream.from_pretrained(folder)
        assert normalization is not None
        assert list(normalization.mean) == list(processor.image_mean)
        assert list(normalization.std) == list(processor.image_std)
        assert normalization.rescale_factor == processor.rescale_factor


def test_a_video_processor_without_a_file_of_its_own(folder: Path) -> None:
    (folder / "video_preprocessor_config.json").unlink()
    edit(folder / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    normalization = video_normalization(folder)
    assert normalization is not None
    assert list(normalization.mean) == list(AutoVideoProcessor.from_pretrained(folder).image_mean)


@pytest.mark.parametrize(
    "names",
    [
        ("chat_template.jinja",),
        ("chat_template.jinja", "chat_template.json"),
        ("chat_template.jinja", "chat_template.json", "processor_config.json"),
        ("chat_template.jinja", "tokenizer_config.json"),
    ],
)
def test_the_template_is_the_one_that_transformers_uses(names: tuple[str, ...], folder: Path) -> None:
    for name in names[1:]:
        edit(folder / name, chat_template=f"{name}{TEMPLATE}")
    assert chat_template(folder) == AutoProcessor.from_pretrained(folder).chat_template


def test_a_hash_of_an_earlier_release_is_named(expected: str) -> None:
    older = model_mismatch("another model", "model_hash", expected, "ab" * 32, "Export it.")
    assert older.status == 409
    assert "earlier release" in str(older)
    assert "Export the bundle again" in str(older)
    other = model_mismatch("another model", "model_hash", expected, "v2-" + "ab" * 32, "Export it.")
    assert "earlier release" not in str(other)
    assert str(other).endswith("Export it.")
