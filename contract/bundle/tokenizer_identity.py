"""What of a checkpoint's tokenizer files determines token ids, in a form that does not depend on who saved them.

transformers 5 builds a `Qwen2Tokenizer` or `Qwen3_5Tokenizer` from vocabulary, merges and added tokens alone, whatever
else tokenizer.json says (`convert_to_native_format`), and writes another tokenizer.json than it read.
`TokenizersBackend` takes the file as it is. Which class it is depends on the model's type too (`AutoTokenizer`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.processor_files import TOKENIZER_CONFIG, read_json_object
from qwen3vl_edge.contract.errors import CheckpointError
from qwen3vl_edge.contract.model_types import ModelType

# How these classes of transformers split text, regardless of tokenizer.json; both normalize to NFC before.
SPLITS = {
    "Qwen2Tokenizer": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "Qwen3_5Tokenizer": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
_BPE_DEFAULTS: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_ADDED_FLAGS = ("single_word", "lstrip", "rstrip")


def tokenizer_class(config: dict[str, Any], kind: ModelType) -> str:
    """The class that transformers builds: as tokenizer_config.json names it, or else of the model's type."""
    named = config.get("tokenizer_class") if kind.tokenizer_named else None
    return str(named or kind.tokenizer).removesuffix("Fast")


def extra_tokens(config: dict[str, Any]) -> list[Any]:
    """Special tokens without a role, as transformers 4 and 5 spell them."""
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    return list(extra.values() if isinstance(extra, dict) else extra)


def tokenizer_identity(folder: Path, kind: ModelType) -> dict[str, Any] | None:
    """Everything that token ids depend on, as JSON values; None where the folder has no tokenizer.

    Vocabulary and added tokens with their ids and the flags that matter to encoding, merges, normalization, splitting,
    and tokens put around a text. Not covered: what only decoding reads, truncation and padding.

    Raises:
        CheckpointError: a file is malformed.
    """
    config = read_json_object(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    file = folder / "tokenizer.json"
    if file.is_file():
        document = read_json_object(file)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        document = {"model": {"vocab": read_json_object(folder / "vocab.json"), "merges": _merges_file(folder)}}
        config = {**config, "tokenizer_class": kind.tokenizer}
    else:
        return None
    try:
        return _identity(document, config, SPLITS.get(tokenizer_class(config, kind)))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the tokenizer of {folder} has an unknown form ({type(error).__name__}: {str(error)[:80]})",
            field="tokenizer.json",
        ) from None


def _identity(document: dict[str, Any], config: dict[str, Any], built_split: str | None) -> dict[str, Any]:
    model = dict(document["model"])
    added = _added_tokens(document, config)
    vocabulary, merges = model.pop("vocab", {}), model.pop("merges", [])
    if isinstance(vocabulary, dict):
        vocabulary = sorted((token, int(number)) for token, number in vocabulary.items() if token not in added)
    if built_split is not None:
        settings = _BPE_DEFAULTS
        normalizer: Any = {"type": "NFC"}
        split = {"type": "Split", "pattern": {"Regex": built_split}, "behavior": "Isolated", "invert": False}
        space = bool(config.get("add_prefix_space"))
        pre_tokenizer: Any = {
            "type": "Sequence",
            "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": space, "use_regex": False}],
        }
    else:
        settings = {name: model.get(name) or default for name, default in _BPE_DEFAULTS.items()} | {
            name: value for name, value in model.items() if name not in _BPE_DEFAULTS
        }
        normalizer, pre_tokenizer = document.get("normalizer"), _without_offsets(document.get("pre_tokenizer"))
    return {
        "vocabulary": vocabulary,
        "added": sorted(added.items()),
        "merges": [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in merges],
        "model": settings,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "around": _around(document.get("post_processor"), config),
        "split_special_tokens": bool(config.get("split_special_tokens")),
    }


def _added_tokens(document: dict[str, Any], config: dict[str, Any]) -> dict[str, list[Any]]:
    """Id and flags by text: of tokenizer.json, else of tokenizer_config.json, else a name without an id."""
    added: dict[str, list[Any]] = {}
    written = [(item["id"], item) for item in document.get("added_tokens") or []]
    written += [(int(number), item) for number, item in (config.get("added_tokens_decoder") or {}).items()]
    for number, item in written:
        flags = [bool(item.get(name)) for name in _ADDED_FLAGS]
        normalized = bool(item.get("normalized", not item.get("special")))
        added.setdefault(item["content"], [number, *flags, normalized])
    vocabulary = document["model"].get("vocab") or {}
    named = [config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")]
    for item in [*named, *extra_tokens(config)]:
        content = item.get("content") if isinstance(item, dict) else item
        if content is not None and content not in added:
            number = vocabulary.get(content) if isinstance(vocabulary, dict) else None
            added[str(content)] = [number, False, False, False, False]
    return added


def _around(post: Any, config: dict[str, Any]) -> list[Any]:
    """Tokens that are put around a text."""
    if config.get("add_bos_token") or config.get("add_eos_token"):
        return [bool(config.get(name)) and config.get(f"{name[4:]}") for name in ("add_bos_token", "add_eos_token")]
    if post is None or post["type"] == "ByteLevel":
        return []
    if post["type"] == "Sequence":
        return [piece for item in post["processors"] for piece in _around(item, {})]
    if post["type"] != "TemplateProcessing":
        return [post]
    pieces = [item["SpecialToken"]["id"] if "SpecialToken" in item else None for item in post["single"]]
    return pieces if any(piece is not None for piece in pieces) else []


def _without_offsets(step: Any) -> Any:
    """A step of the pre-tokenizer without what changes offsets alone."""
    if isinstance(step, dict):
        return {name: _without_offsets(value) for name, value in step.items() if name != "trim_offsets"}
    return [_without_offsets(item) for item in step] if isinstance(step, list) else step


def _merges_file(folder: Path) -> list[str]:
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{folder / 'merges.txt'} cannot be read ({type(error).__name__})", field="merges.txt"
        ) from None
    return [line for line in lines if line.strip() and not line.startswith("#version")]
