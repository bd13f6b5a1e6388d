"""Read a Hugging Face checkpoint folder without loading the model: its config, tensors and identity."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint_tensor import CheckpointTensor
from qwen3vl_edge.contract.bundle.model_hash import model_hash
from qwen3vl_edge.contract.bundle.processor_files import read_json_object
from qwen3vl_edge.contract.errors import CheckpointError, WireError
from qwen3vl_edge.contract.formats.safetensors_layout import Layout, header_length, parse_header

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
VISUAL_PREFIXES = ("model.visual.", "visual.")
# Files that the device needs to turn messages into token ids and pixels into patches.
PROCESSOR_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A local folder with `config.json` and safetensors shards of a Qwen3-VL model, dense or MoE."""

    path: Path
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` as written.

        Raises:
            CheckpointError: missing, unreadable, or not a Qwen3-VL.
        """
        config = read_json_object(self.path / "config.json")
        if config.get("model_type") not in MODEL_TYPES:
            raise CheckpointError(
                f"{self.path} is not a Qwen3-VL checkpoint",
                field="model_type",
                expected=" or ".join(MODEL_TYPES),
                got=config.get("model_type"),
            )
        return config

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files that hold visual tensors; others of a sharded model need not be present."""
        index = self.path / INDEX_FILE
        # As transformers: a single file is read, whatever an index beside it says that an earlier save left behind.
        if index.exists() and not (self.path / SINGLE_FILE).is_file():
            weight_map = read_json_object(index).get("weight_map", {})
            names = sorted({shard for name, shard in weight_map.items() if name.startswith(VISUAL_PREFIXES)})
        else:
            names = [SINGLE_FILE]
        for name in names:
            if not (self.path / name).is_file():
                raise CheckpointError(
                    f"{self.path / name} is missing", field=name, remedy="Download the whole checkpoint again."
                )
        return tuple(self.path / name for name in names)

    @cached_property
    def visual_tensors(self) -> dict[str, CheckpointTensor]:
        """Tensors of the encoder by name without prefix (`"blocks.0.attn.qkv.weight"`), in name order.

        Raises:
            CheckpointError: a shard is truncated or malformed, or has no encoder tensors.
        """
        tensors: dict[str, CheckpointTensor] = {}
        for shard in self.shards:
            layout = read_layout(shard)
            for name, entry in layout.tensors.items():
                prefix = next((prefix for prefix in VISUAL_PREFIXES if name.startswith(prefix)), None)
                if prefix is not None:
                    tensors[name.removeprefix(prefix)] = CheckpointTensor(shard, entry, layout.data_start)
        if not tensors:
            raise CheckpointError(f"{self.path} has no visual.* tensors", field=str(self.path))
        return dict(sorted(tensors.items()))

    @cached_property
    def model_hash(self) -> str:
        """Identity of everything that determines embeddings and token ids, see contract/bundle/model_hash.py.

        Raises:
            CheckpointError: a file is malformed.
        """
        return model_hash(self.path, self.config, self.visual_tensors)

    def processor_files(self) -> list[Path]:
        """The processor's files that this checkpoint has."""
        return [self.path / name for name in PROCESSOR_FILES if (self.path / name).is_file()]


def read_layout(shard: Path) -> Layout:
    """Parse a safetensors file's header.

    Raises:
        CheckpointError: the file is truncated or malformed.
    """
    try:
        with shard.open("rb") as file:
            length = header_length(file.read(8))
            layout = parse_header(file.read(length), data_start=8 + length)
    except (WireError, OSError) as error:
        raise CheckpointError(f"{shard} cannot be read: {error}", field=str(shard)) from None
    size = shard.stat().st_size
    if size < layout.total_bytes:
        raise CheckpointError(
            f"{shard} is truncated",
            field=str(shard),
            expected=f"{layout.total_bytes} bytes",
            got=f"{size} bytes",
            remedy="Copy or download it again.",
        )
    return layout


def open_checkpoint(model: str, *, patterns: Iterable[str] | None = None) -> Checkpoint:
    """A checkpoint from a local folder, or from a hub id through huggingface_hub's cache.

    Args:
        model: path, or an id such as `Qwen/Qwen3-VL-2B-Instruct`.
        patterns: files to download from the hub; None for the processor's files and the shards with
            visual tensors, so the language model of a sharded checkpoint is not downloaded.

    Raises:
        CheckpointError: no such folder, and not an id that can be downloaded.
    """
    path = Path(model)
    if path.is_dir():
        checkpoint = Checkpoint(path, path.resolve().name)
        _ = checkpoint.config
        return checkpoint
    if path.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(
            f"no checkpoint folder at {model}", field="model", remedy="Give a local folder or a hub id like org/name."
        )
    return Checkpoint(_from_hub(model, patterns), model)


def _from_hub(model: str, patterns: Iterable[str] | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{model} is not a local folder", field="model", remedy="Install huggingface_hub to use hub ids."
        ) from None
    try:
        if patterns is not None:
            return Path(snapshot_download(model, allow_patterns=list(patterns)))
        folder = Path(snapshot_download(model, allow_patterns=[*PROCESSOR_FILES, "*.index.json", SINGLE_FILE]))
        if (folder / SINGLE_FILE).is_file() or not (folder / INDEX_FILE).is_file():
            return folder
        weight_map = read_json_object(folder / INDEX_FILE)["weight_map"]
        names = sorted({shard for name, shard in weight_map.items() if name.startswith(VISUAL_PREFIXES)})
        processor = [path.name for path in Checkpoint(folder, model).processor_files()]
        return Path(snapshot_download(model, allow_patterns=[*processor, *names]))
    except CheckpointError:
        raise
    except Exception as error:  # huggingface_hub raises many kinds; all mean that the files cannot be downloaded
        reason = str(error).split("\n")[0][:200]
        raise CheckpointError(
            f"{model} is neither a local folder nor a hub model that can be downloaded ({reason})", field="model"
        ) from None
