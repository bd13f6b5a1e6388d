"""The identity of a model for which embeddings and token ids are made: device and server compare it.

Rule 2, written as `v2-` and a sha256. Hashes without that prefix are of rule 1 (earlier releases), which covered files
as they were written: the two are never equal, and a bundle with an earlier one has to be exported again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle import processor_files
from qwen3vl_edge.contract.bundle.checkpoint_tensor import FLOAT_DTYPES, CheckpointTensor, to_float32
from qwen3vl_edge.contract.bundle.tokenizer_identity import tokenizer_identity
from qwen3vl_edge.contract.errors import ModelMismatchError
from qwen3vl_edge.contract.model_types import ModelType, model_type, vision_config

PREFIX = "v2-"
_VISION_ALIASES = {"num_heads": "num_attention_heads", "depth": "num_hidden_layers"}  # transformers' attribute_map
_ROPE_THETA = 10000.0
_RUNS, _RUN = 4, 16  # values of a tensor that are hashed: so many runs, from its first value to its last


def model_hash(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, CheckpointTensor]) -> str:
    """The identity of everything that determines embeddings and token ids, whoever saved the checkpoint.

    Covered, each by its meaning and not by its spelling:

    - the encoder's dimensions, activation, DeepStack layers and rotary base; model type, ids of the visual tokens;
    - of each encoder tensor name, shape and 64 values spread over it, as float32: enough to distinguish any retrained
      or merged encoder, while a server can compute it without loading one. Equal values have one hash in float32,
      float16 and bfloat16; a cast that rounds values makes another encoder, with another hash;
    - the tokenizer: vocabulary, merges, added tokens, normalization and splitting (`tokenizer_identity`);
    - the chat template in use, wherever it is stored;
    - mean, standard deviation and rescaling of image and video processor.

    So `from_pretrained` and `save_pretrained` keep it. Not covered: the language model's weights and layers (a
    fine-tuned one on an unchanged encoder and tokenizer accepts the same embeddings), pixel limits, and sampling.

    Raises:
        CheckpointError: a file is malformed.
    """
    digest = hashlib.sha256(b"qwen3vl-edge model 2\n")
    kind = model_type(config, str(folder))
    template = processor_files.chat_template(folder)
    digest.update(
        _canonical(
            {
                "config": _config(config, kind),
                "tokenizer": tokenizer_identity(folder, kind),
                "chat_template": None if template is None else _as_rendered(template),
                "image": _normalization(processor_files.image_normalization(folder)),
                "video": _normalization(processor_files.video_normalization(folder)),
            }
        )
    )
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name}:{list(tensor.entry.shape)}:".encode())
        digest.update(_probe(tensor))
    return PREFIX + digest.hexdigest()


def rule_of(value: str) -> int:
    """The rule by which a hash was made: 2, or 1 for hashes of earlier releases."""
    return 2 if value.startswith(PREFIX) else 1


def model_mismatch(
    message: str, field: str, expected: str, got: object, remedy: str | None = None
) -> ModelMismatchError:
    """The error where `got` is not the hash `expected`: it says which of both is of an earlier release.

    Args:
        remedy: where both were made by one rule.
    """
    if isinstance(got, str) and rule_of(got) != rule_of(expected):
        message = f"{message}, or its hash is of an earlier release and cannot be compared"
        remedy = "Export the bundle again with this release, from the checkpoint that the server runs."
    return ModelMismatchError(message, field=field, expected=expected, got=str(got)[:80], remedy=remedy)


def _config(config: Mapping[str, Any], kind: ModelType) -> dict[str, Any]:
    vision = vision_config(config)
    values: dict[str, Any] = {"model_type": kind.name}
    for name, default in kind.token_defaults.items():
        values[name] = config.get(name, default)
    for name, default in kind.vision_defaults.items():
        values[f"vision.{name}"] = vision.get(name, vision.get(_VISION_ALIASES.get(name, name), default))
    rope = vision.get("rope_parameters") or vision.get("rope_scaling") or {}
    theta = rope.get("rope_theta", vision.get("rope_theta", _ROPE_THETA)) if isinstance(rope, dict) else rope
    values["vision.rope_theta"] = float(theta) if isinstance(theta, (int, float)) else theta  # 10000 is 10000.0
    return values


def _as_rendered(template: str) -> str:
    """A template's text as Jinja reads it: one kind of line ends, and none at the end."""
    return template.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def _normalization(values: processor_files.Normalization | None) -> list[Any] | None:
    return None if values is None else [list(values.mean), list(values.std), values.rescale_factor]


def _probe(tensor: CheckpointTensor) -> bytes:
    """Values from its first to its last as float32; the bytes as they are for a dtype that no encoder is read from."""
    count, dtype = math.prod(tensor.entry.shape), tensor.entry.dtype
    width = tensor.entry.nbytes // count if count else 0
    if count <= _RUNS * _RUN:
        raw = tensor.read()
    else:
        starts = [index * (count - _RUN) // (_RUNS - 1) for index in range(_RUNS)]
        raw = b"".join(tensor.read(_RUN * width, start * width) for start in starts)
    return to_float32(raw, dtype).tobytes() if dtype in FLOAT_DTYPES else dtype.encode() + raw


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
