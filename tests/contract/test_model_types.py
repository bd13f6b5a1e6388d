"""Each row of the table of model types against transformers' own classes; what a type that is not there gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.bundle.tokenizer_identity import SPLITS, tokenizer_class, tokenizer_identity
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.contract.model_types import MODEL_TYPES, ModelType
from tests.support.model_types.tiny_checkpoint import oracle_of, tiny_checkpoint
from tests.support.server_checkpoint import build_case

rows = pytest.mark.parametrize("row", MODEL_TYPES.values(), ids=lambda row: row.name)


@rows
def test_defaults_are_those_of_transformers(row: ModelType) -> None:
    config = AutoConfig.for_model(row.name)
    defaults = dict(row.vision_defaults)
    layers = defaults.pop("deepstack_visual_indexes")
    assert {name: getattr(config.vision_config, name) for name in defaults} == defaults
    assert list(getattr(config.vision_config, "deepstack_visual_indexes", ())) == layers
    assert {name: getattr(config, name) for name in row.token_defaults} == dict(row.token_defaults)


@rows
def test_classes_are_those_of_transformers(row: ModelType) -> None:
    config = AutoConfig.for_model(row.name, text_config={"num_hidden_layers": 4})
    with torch.device("meta"):
        encoder = AutoModel.from_config(config.vision_config)
        assert AutoModelForImageTextToText._model_mapping[type(config)].__name__ == row.language_model
    assert PROCESSOR_MAPPING_NAMES[row.name] == row.processor
    assert hasattr(transformers, row.image_processor)
    assert hasattr(transformers, row.video_processor)
    mergers = {name.split(".")[1] for name in encoder.state_dict() if name.startswith("deepstack_merger_list.")}
    assert len(mergers) == len(row.deepstack or ())
    kinds = getattr(config.text_config, "layer_types", None) or []
    assert ("linear_attention" in kinds) == row.recurrent


@rows
@pytest.mark.parametrize(
    "named", [None, "Qwen2Tokenizer", "Qwen2TokenizerFast", "Qwen3_5Tokenizer", "TokenizersBackend"]
)
def test_the_tokenizer_is_the_one_that_transformers_builds(row: ModelType, named: str | None, tmp_path: Path) -> None:
    for file in tiny_checkpoint(row.name).iterdir():
        if file.suffix == ".json":
            shutil.copy(file, tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"tokenizer_class": named}
    file.write_text(json.dumps(config))
    built = AutoTokenizer.from_pretrained(tmp_path)
    assert type(built).__name__ == tokenizer_class(config, row)
    identity = tokenizer_identity(tmp_path, row)
    assert identity is not None
    steps = json.loads(built.backend_tokenizer.to_str())["pre_tokenizer"]
    split = SPLITS.get(type(built).__name__)
    if split is not None:
        assert steps["pretokenizers"][0]["pattern"]["Regex"] == split
        assert identity["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == split
    else:
        assert identity["pre_tokenizer"]["type"] == steps["type"]


def write_config(folder: Path, **values: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_5_text", None, 3, ["qwen3_vl"]])
def test_another_type_is_refused_with_the_list(name: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="model type of") as caught:
        open_checkpoint(write_config(tmp_path / "m", model_type=name))
    assert all(known in str(caught.value) for known in MODEL_TYPES)
    assert ("no model_type" if name is None else str(name)) in str(caught.value)


@rows
def test_a_checkpoint_saved_by_transformers_is_read(row: ModelType) -> None:
    source = oracle_of(row.name)
    encoder = source.model.model.visual
    assert set(source.checkpoint.visual_tensors) == set(encoder.state_dict())
    assert len(source.checkpoint.deepstack_layers) == len(getattr(encoder, "deepstack_merger_list", ()))
    case = build_case(source, "image and clip")
    assert {len(item.deepstack) for item in case.request.media} == {len(source.checkpoint.deepstack_layers)}
    assert len(source.greedy(case, 4)) == 4


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_deepstack_layers_come_from_the_config(name: str, tmp_path: Path) -> None:
    kind = MODEL_TYPES[name]
    default = open_checkpoint(write_config(tmp_path / "default", model_type=name))
    assert default.deepstack_layers == (kind.deepstack or ())
    # Released checkpoints of types without DeepStack say so with an empty list.
    empty = {"deepstack_visual_indexes": []}
    assert open_checkpoint(write_config(tmp_path / "n", model_type=name, vision_config=empty)).deepstack_layers == ()
    named = open_checkpoint(
        write_config(tmp_path / "named", model_type=name, vision_config={"deepstack_visual_indexes": [1, 2]})
    )
    if kind.deepstack is None:
        with pytest.raises(CheckpointError, match=f"the encoder of {name} has no DeepStack"):
            _ = named.deepstack_layers
    else:
        assert named.deepstack_layers == (1, 2)
