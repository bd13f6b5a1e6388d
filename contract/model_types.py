"""The model types whose vision encoder this project runs: what differs between them, as one table.

Everything else (widths, depths, token ids, DeepStack layers) is read from config.json and the weights, never from a
model's name. A new type is a row here, and a case of tests/contract/test_model_types.py, which holds each row against
transformers' own classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3vl_edge.contract.errors import CheckpointError

# Defaults of transformers' vision configs (`Qwen3VLVisionConfig`, `Qwen3_5VisionConfig` and their MoE twins): what one
# generation of transformers writes, another leaves out.
TOWER_DEFAULTS: Mapping[str, Any] = {
    "depth": 27,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}
_VISUAL_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class ModelType:
    """What a checkpoint of one `model_type` is made of.

    Attributes:
        name: `model_type` of config.json.
        deepstack: the DeepStack layers where config.json does not name them; None: the type's encoder has no DeepStack.
        token_defaults: ids of the visual tokens where config.json does not name them.
        language_model: transformers' class of the whole model, whose language model the server runs.
        recurrent: some layers of the language model keep a recurrent state in place of keys and values
            (Gated DeltaNet).
        visual_prefixes: what the names of the encoder's tensors start with.
        tokenizer: transformers' class of its tokenizer.
        tokenizer_named: whether tokenizer_config.json may name another class; where it may not, transformers builds
            `tokenizer` whatever the file says (`MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS`).
        processor: transformers' class that turns messages and media into token ids and patches.
        image_processor, video_processor: and the classes of its parts.
    """

    name: str
    deepstack: tuple[int, ...] | None
    token_defaults: Mapping[str, int]
    language_model: str
    recurrent: bool = False
    tokenizer: str = "Qwen2Tokenizer"
    tokenizer_named: bool = True
    visual_prefixes: tuple[str, ...] = ("model.visual.", "visual.")
    processor: str = "Qwen3VLProcessor"
    image_processor: str = "Qwen2VLImageProcessor"
    video_processor: str = "Qwen3VLVideoProcessor"

    @property
    def vision_defaults(self) -> dict[str, Any]:
        """Every value of `vision_config` that determines embeddings, where config.json does not name it."""
        return {**TOWER_DEFAULTS, "deepstack_visual_indexes": list(self.deepstack or ())}

    def deepstack_layers(self, vision: Mapping[str, Any]) -> tuple[int, ...]:
        """The encoder's layers with a DeepStack level: as `vision_config` names them, or else the type's default.

        Raises:
            CheckpointError: layers are named where the type has no DeepStack, or are not integers.
        """
        layers = vision.get("deepstack_visual_indexes", self.deepstack or ())
        if not isinstance(layers, (list, tuple)) or not all(type(layer) is int for layer in layers):
            raise CheckpointError(
                "vision_config.deepstack_visual_indexes is not a list of layers",
                field="deepstack_visual_indexes",
                expected="a list of integers",
                got=repr(layers)[:60],
            )
        if layers and self.deepstack is None:
            raise CheckpointError(
                f"config.json names DeepStack layers, and the encoder of {self.name} has no DeepStack",
                field="deepstack_visual_indexes",
                expected="no layers",
                got=list(layers),
                remedy="Copy config.json of the original checkpoint there.",
            )
        return tuple(layers)


def _tokens(image: int, video: int, start: int, end: int) -> dict[str, int]:
    return dict(zip(_VISUAL_TOKENS, (image, video, start, end), strict=True))


_QWEN3_VL = _tokens(image=151655, video=151656, start=151652, end=151653)
_QWEN3_5 = _tokens(image=248056, video=248057, start=248053, end=248054)
_ROWS = (
    ModelType("qwen3_vl", (8, 16, 24), _QWEN3_VL, "Qwen3VLForConditionalGeneration"),
    ModelType("qwen3_vl_moe", (8, 16, 24), _QWEN3_VL, "Qwen3VLMoeForConditionalGeneration"),
    # Qwen3.6 and later generations are published under these two.
    *(
        ModelType(
            name,
            None,
            _QWEN3_5,
            language_model,
            recurrent=True,
            tokenizer="Qwen3_5Tokenizer",
            tokenizer_named=False,
        )
        for name, language_model in (
            ("qwen3_5", "Qwen3_5ForConditionalGeneration"),
            ("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
        )
    ),
)
MODEL_TYPES: Mapping[str, ModelType] = {row.name: row for row in _ROWS}


def model_type(config: Mapping[str, Any], source: str) -> ModelType:
    """The row of a checkpoint's config.json.

    Args:
        source: the checkpoint, for the error.

    Raises:
        CheckpointError: its type is not in the table.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in MODEL_TYPES:
        raise CheckpointError(
            f"the model type of {source} is not supported",
            field="model_type",
            expected=f"one of {', '.join(MODEL_TYPES)}",
            got="no model_type" if name is None else name,
        )
    return MODEL_TYPES[name]


def vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`vision_config` of config.json, empty where there is none.

    Raises:
        CheckpointError: it is not an object.
    """
    vision = config.get("vision_config") or {}
    if not isinstance(vision, dict):
        raise CheckpointError(
            "config.json has no object in vision_config", field="vision_config", got=repr(vision)[:60]
        )
    return vision
