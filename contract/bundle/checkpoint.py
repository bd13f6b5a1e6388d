"""Read a Hugging Face checkpoint folder without loading the model: its config, tensors and identity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.checkpoint_tensor import CheckpointTensor
from qwen3vl_edge.contract.bundle.model_hash import model_hash
from qwen3vl_edge.contract.bundle.processor_files import read_json_object
from qwen3vl_edge.contract.errors import CheckpointError, WireError
from qwen3vl_edge.contract.formats.safetensors_layout import Layout, header_length, parse_header
from qwen3vl_edge.contract.model_types import ModelType, model_type, vision_config

DEEPSTACK_MERGERS = "deepstack_merger_list."
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
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
    """A local folder with `config.json` and safetensors shards of a model of contract/model_types.py."""

    path: Path
    name: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json` as written.

        Raises:
            CheckpointError: missing, unreadable, or of a model type that is not supported.
        """
        config = read_json_object(self.path / "config.json")
        model_type(config, str(self.path))
        return config

    @property
    def model_type(self) -> ModelType:
        """What a checkpoint of this type is made of.

        Raises:
            CheckpointError: as `config`.
        """
        return model_type(self.config, str(self.path))

    @cached_property
    def deepstack_layers(self) -> tuple[int, ...]:
        """The encoder's layers with a DeepStack level, as config.json says; none for types without DeepStack.

        Raises:
            CheckpointError: as `config`, or the layers are named where the type has none, or malformed.
        """
        return self.model_type.deepstack_layers(vision_config(self.config))

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The safetensors files that hold visual tensors; others of a sharded model need not be present."""
        index = self.path / INDEX_FILE
        # As transformers: a single file is read, whatever an index beside it says that an earlier save left behind.
        if index.exists() and not (self.path / SINGLE_FILE).is_file():
            names = _visual_shards(read_json_object(index).get("weight_map", {}), self.model_type)
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
            CheckpointError: a shard is truncated or malformed, has no encoder tensors, or others of DeepStack than
                config.json says.
        """
        prefixes = self.model_type.visual_prefixes
        tensors: dict[str, CheckpointTensor] = {}
        for shard in self.shards:
            layout = read_layout(shard)
            for name, entry in layout.tensors.items():
                prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
                if prefix is not None:
                    tensors[name.removeprefix(prefix)] = CheckpointTensor(shard, entry, layout.data_start)
        if not tensors:
            raise CheckpointError(f"{self.path} has no visual.* tensors", field=str(self.path))
        _check_deepstack(self.deepstack_layers, tensors, self.path)
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


def _check_deepstack(layers: tuple[int, ...], tensors: Iterable[str], path: Path) -> None:
    """Refuse DeepStack in config.json without its weights, and the reverse: answers would differ silently."""
    mergers = {name.split(".")[1] for name in tensors if name.startswith(DEEPSTACK_MERGERS)}
    if len(mergers) != len(layers):
        raise CheckpointError(
            f"config.json of {path} and its weights do not agree on DeepStack",
            field="deepstack_visual_indexes",
            expected=f"{len(layers)} DeepStack mergers, for config.json names the layers {list(layers)}",
            got=f"{len(mergers)} in the weights",
            remedy="Take config.json and weights of one checkpoint.",
        )


def _visual_shards(weight_map: Mapping[str, str], kind: ModelType) -> list[str]:
    return sorted({shard for name, shard in weight_map.items() if name.startswith(kind.visual_prefixes)})


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
        checkpoint = Checkpoint(folder, model)
        names = _visual_shards(read_json_object(folder / INDEX_FILE)["weight_map"], checkpoint.model_type)
        processor = [path.name for path in checkpoint.processor_files()]
        return Path(snapshot_download(model, allow_patterns=[*processor, *names]))
    except CheckpointError:
        raise
    except Exception as error:  # huggingface_hub raises many kinds; all mean that the files cannot be downloaded
        reason = str(error).split("\n")[0][:200]
        raise CheckpointError(
            f"{model} is neither a local folder nor a hub model that can be downloaded ({reason})", field="model"
        ) from None
