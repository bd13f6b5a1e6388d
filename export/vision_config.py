"""The encoder's dimensions and preprocessing constants, read from the checkpoint and checked."""

from __future__ import annotations

from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint
from qwen3vl_edge.contract.bundle.manifest import Preprocessing, VisionSpec
from qwen3vl_edge.contract.bundle.processor_files import (
    image_normalization,
    image_processor_config,
    video_normalization,
    video_processor_config,
)
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.export.onnx.activations import ACTIVATIONS


def read_vision_spec(checkpoint: Checkpoint) -> VisionSpec:
    """The `vision_config` of config.json, with transformers' defaults for missing values.

    Raises:
        CheckpointError: a value that the graph does not implement, named with what is supported.
    """
    levels = checkpoint.deepstack_layers
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
    side = int(vision.num_position_embeddings**0.5)
    if side**2 != vision.num_position_embeddings:
        raise _unsupported(
            "num_position_embeddings",
            "a square number",
            vision.num_position_embeddings,
            "The learned positions are a square table, of which each picture's are interpolated; transformers would "
            f"use the first {side}x{side} of them and leave out the rest.",
        )
    # Of a layer named twice transformers runs one merger, and of a layer that is not there none.
    if len(set(levels)) != len(levels) or not set(levels) <= set(range(vision.depth)):
        raise _unsupported("deepstack_visual_indexes", f"different layers below {vision.depth}", list(levels))
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
    """Constants of the checkpoint's image and video processors.

    Raises:
        CheckpointError: no image processor configuration, or a malformed one.
    """
    image, video = image_normalization(checkpoint.path), video_normalization(checkpoint.path)
    if image is None:
        raise _no_processor(checkpoint)
    return Preprocessing(
        image_mean=image.mean,
        image_std=image.std,
        rescale_factor=image.rescale_factor,
        video_mean=() if video is None else video.mean,
        video_std=() if video is None else video.std,
    )


def check_processor_geometry(checkpoint: Checkpoint, spec: VisionSpec) -> None:
    """Compare the patch geometry of image and video processor with the encoder's.

    Raises:
        CheckpointError: they differ, so that pixels would be cut into patches of another size.
    """
    kinds = {"image": _image_processor(checkpoint), "video": video_processor_config(checkpoint.path) or {}}
    for kind, values in kinds.items():
        for name in ("patch_size", "merge_size", "temporal_patch_size"):
            # transformers' image processor has patches of 14 where its file says nothing, its video processor of 16.
            default = 14 if (kind, name) == ("image", "patch_size") else getattr(spec, name)
            if values.get(name, default) != getattr(spec, name):
                raise CheckpointError(
                    f"the {kind} processor's {name} is not the encoder's",
                    field=name,
                    expected=getattr(spec, name),
                    got=values.get(name, default),
                    remedy="Copy the processor's files of the original checkpoint there.",
                )


def _image_processor(checkpoint: Checkpoint) -> dict[str, Any]:
    values = image_processor_config(checkpoint.path)
    if values is None:
        raise _no_processor(checkpoint)
    return values


def _no_processor(checkpoint: Checkpoint) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path} has no image processor configuration",
        field="preprocessor_config.json",
        remedy="Copy preprocessor_config.json of the original checkpoint there.",
    )
