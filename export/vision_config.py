"""The encoder's dimensions and preprocessing constants, read from the checkpoint and checked."""

from __future__ import annotations

import json
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.contract.errors import CheckpointError

# How the ONNX graph spells the MLP's activation.
ACTIVATIONS = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}


def read_vision_spec(checkpoint: Checkpoint) -> VisionSpec:
    """The `vision_config` of config.json, with transformers' defaults for missing values.

    Raises:
        CheckpointError: a value that the graph does not implement, named with what is supported.
    """
    vision = _vision_config(checkpoint)
    for name in ("hidden_size", "intermediate_size", "depth", "num_heads", "out_hidden_size", "in_channels"):
        if getattr(vision, name) < 1:
            raise _unsupported(name, "1 or more", getattr(vision, name))
    for name in ("patch_size", "temporal_patch_size"):
        if not isinstance(getattr(vision, name), int):
            raise _unsupported(name, "one integer", getattr(vision, name))
    if vision.spatial_merge_size < 2:
        raise _unsupported(
            "spatial_merge_size",
            "2 or more",
            vision.spatial_merge_size,
            "Merge 1 has no merge blocks, for which patches are ordered and buckets are sized here.",
        )
    if vision.hidden_act not in ACTIVATIONS:
        raise _unsupported("hidden_act", " or ".join(ACTIVATIONS), vision.hidden_act)
    if vision.hidden_size % vision.num_heads or (vision.hidden_size // vision.num_heads) % 4:
        width = (
            f"{vision.hidden_size / vision.num_heads:g} (hidden_size {vision.hidden_size} by {vision.num_heads} heads)"
        )
        raise _unsupported("num_heads", "a head width that is a multiple of 4", width)
    if int(vision.num_position_embeddings**0.5) ** 2 != vision.num_position_embeddings:
        raise _unsupported("num_position_embeddings", "a square number", vision.num_position_embeddings)
    levels = tuple(vision.deepstack_visual_indexes)
    # transformers returns the levels in layer order and pairs them by index, so another order would be ambiguous.
    if list(levels) != sorted(set(levels) & set(range(vision.depth))):
        raise _unsupported("deepstack_visual_indexes", f"ascending layers below {vision.depth}", list(levels))
    return VisionSpec(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        in_channels=vision.in_channels,
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        depth=vision.depth,
        num_heads=vision.num_heads,
        out_hidden_size=vision.out_hidden_size,
        num_position_embeddings=vision.num_position_embeddings,
        deepstack_visual_indexes=levels,
        hidden_act=vision.hidden_act,
        rope_theta=float((vision.rope_parameters or {}).get("rope_theta", 10000.0)),
    )


def _vision_config(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig

    written = checkpoint.config.get("vision_config") or {}
    # Checked as written: transformers' own check of another rope type fails on missing keys.
    rope = written.get("rope_parameters") or written.get("rope_scaling") or {}
    kind = rope.get("rope_type", "axial")
    if kind != "axial":
        raise _unsupported("rope_parameters.rope_type", "axial", kind)
    try:
        return AutoConfig.from_pretrained(checkpoint.path).vision_config
    except Exception as error:  # its validators raise kinds of their own
        raise CheckpointError(
            f"transformers does not accept config.json ({' '.join(str(error).split())[:300]})", field="config.json"
        ) from None


def _unsupported(name: str, expected: str, got: object, remedy: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"vision_config.{name} is not supported", field=name, expected=expected, got=got, remedy=remedy
    )


def read_preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """Constants of the checkpoint's image processor.

    Raises:
        CheckpointError: no image processor configuration.
    """
    values = _image_processor(checkpoint)
    return Preprocessing(
        image_mean=tuple(float(value) for value in values.get("image_mean", (0.5, 0.5, 0.5))),
        image_std=tuple(float(value) for value in values.get("image_std", (0.5, 0.5, 0.5))),
        rescale_factor=float(values.get("rescale_factor", 1 / 255)),
    )


def check_processor_geometry(checkpoint: Checkpoint, spec: VisionSpec) -> None:
    """Compare the image processor's patch geometry with the encoder's.

    Raises:
        CheckpointError: they differ, so that pixels would be cut into patches of another size.
    """
    values = _image_processor(checkpoint)
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        if values.get(name, getattr(spec, name)) != getattr(spec, name):
            raise CheckpointError(
                f"the image processor's {name} is not the encoder's",
                field=name,
                expected=getattr(spec, name),
                got=values[name],
                remedy="Copy preprocessor_config.json of the original checkpoint there.",
            )


def _image_processor(checkpoint: Checkpoint) -> dict[str, Any]:
    # transformers 5 may write one processor_config.json in place of preprocessor_config.json.
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        file = checkpoint.path / name
        if file.is_file():
            try:
                document = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{file} cannot be read ({type(error).__name__})", field=name) from None
            values = document.get(key) if key is not None and isinstance(document, dict) else document
            if isinstance(values, dict):
                return values
    raise CheckpointError(
        f"{checkpoint.path} has no image processor configuration",
        field="preprocessor_config.json",
        remedy="Copy preprocessor_config.json of the original checkpoint there.",
    )
