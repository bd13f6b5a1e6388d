"""A checkpoint's tokenizer without transformers: the same token ids, or a refusal that says what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.bundle.processor_files import TOKENIZER_CONFIG, read_json_object
from qwen3vl_edge.contract.bundle.tokenizer_identity import SPLITS, extra_tokens, tokenizer_class
from qwen3vl_edge.contract.errors import BundleError, CheckpointError
from qwen3vl_edge.contract.model_types import ModelType

IMAGE_TOKEN, VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
# Classes for which transformers takes tokenizer.json as it is, where the model's type lets the file name one.
PLAIN_TOKENIZERS = {"TokenizersBackend", "PreTrainedTokenizerFast"}


def load_tokenizer(folder: Path, kind: ModelType) -> Any:
    """The `tokenizers.Tokenizer` of a processor's folder, without truncation and padding.

    Raises:
        BundleError: transformers would build another tokenizer from the files than tokenizer.json is.
        ImportError: tokenizers is not installed.
    """
    from tokenizers import AddedToken, Tokenizer

    config = _read(folder / TOKENIZER_CONFIG)
    later = _check(folder, config, kind)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise not_lean(folder, f"tokenizer.json cannot be read ({error})") from None
    for number, item in later:
        special = bool(item.get("special"))
        flags = {name: bool(item.get(name)) for name in ("single_word", "lstrip", "rstrip")}
        normalized = bool(item.get("normalized", not special))
        tokenizer.add_tokens([AddedToken(item["content"], special=special, normalized=normalized, **flags)])
        if tokenizer.token_to_id(item["content"]) != number:
            raise not_lean(folder, f"tokenizer_config.json gives {item['content']} an id that does not follow")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def not_lean(path: Path, reason: str) -> BundleError:
    """The refusal of a processor's folder or file."""
    return BundleError(
        f"lean preprocessing cannot use {path.name}: {reason}",
        field="--preprocess",
        remedy="Take --preprocess reference.",
    )


def _check(folder: Path, config: dict[str, Any], kind: ModelType) -> list[tuple[int, dict[str, Any]]]:
    """Compare the files with what transformers would build from them.

    Returns:
        Tokens that tokenizer_config.json alone has, in the order of their ids, in which transformers adds them.
        Released checkpoints of Qwen3.5 have some.
    """
    tokenizer = _read(folder / "tokenizer.json")
    name = tokenizer_class(config, kind)
    plain = kind.tokenizer_named and config.get("tokenizer_class") in PLAIN_TOKENIZERS
    built_split = SPLITS.get(name)
    options = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")
    if not (plain or built_split) or any(config.get(option) for option in options):
        raise not_lean(folder, f"its tokenizer is not {' or '.join(SPLITS)}, or has an option of its own")
    steps = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers", [])
    split = steps[0].get("pattern", {}).get("Regex") if steps else None
    if built_split and (split != built_split or (tokenizer.get("normalizer") or {}).get("type") != "NFC"):
        raise not_lean(folder, f"tokenizer.json splits text in another way than {name}")
    token_ids = {item["content"]: item["id"] for item in tokenizer.get("added_tokens", [])}
    added = {int(number): item for number, item in config.get("added_tokens_decoder", {}).items()}
    later = [(number, item) for number, item in sorted(added.items()) if item["content"] not in token_ids]
    known = token_ids | {item["content"]: number for number, item in later}
    named = [config.get(role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")]
    named = [item for item in [*named, *extra_tokens(config)] if item is not None]
    named = [item["content"] if isinstance(item, dict) else item for item in named]
    if any(known[item["content"]] != number for number, item in added.items()) or any(
        token not in known for token in [*named, IMAGE_TOKEN, VIDEO_TOKEN]
    ):
        raise not_lean(folder, "tokenizer_config.json adds tokens that tokenizer.json does not have")
    # Where tokenizer_config.json lists added tokens, the classes that are built anew have no others.
    if built_split and "added_tokens_decoder" in config:
        listed = {item["content"] for item in added.values()} | set(named)
        if lost := [token for token in token_ids if token not in listed]:
            raise not_lean(folder, f"transformers leaves out {lost[0]}, which tokenizer_config.json does not list")
    return later


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except CheckpointError as error:
        raise not_lean(path, error.message) from None
