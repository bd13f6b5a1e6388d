"""`gate.toml`: a release's thresholds as a file, read strictly.

[encoder]                       every output of every bucket
[encoder.output.embeds]         one output, on top of [encoder]
[layers]                        the residual stream and the mergers
[answers]                       greedy tokens and logits
[precision.fp16.encoder]        any of the above for one precision, on top of it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.parity.gate import AnswerLimits, EncoderLimits, Gate, default_gate

OUTPUT = "output"
ENCODER_KEYS = tuple(item.name for item in fields(EncoderLimits))
ANSWER_KEYS = ("min_agreement", "max_kl", "min_prompts")
LAYER_KEYS = ("max_relative_l2",)
SECTIONS = ("encoder", "layers", "answers")


def read_gate(path: Path, precision: str, wire_dtype: str, output_names: tuple[str, ...], backend: str = "") -> Gate:
    """The gate of a file for one precision, on top of that precision's defaults on a backend.

    Raises:
        InputError: unreadable, not TOML, or a key or value that no limit has.
    """
    document = _load(path)
    gate = replace(default_gate(precision, wire_dtype, backend), source=path.name)
    overrides = document.pop("precision", {})
    gate = _apply(gate, document, str(path), output_names)
    _check_table(overrides, f"{path}: precision")
    for name, table in overrides.items():
        changed = _apply(gate, table, f"{path}: precision.{name}", output_names)
        gate = changed if name == precision else gate
    return gate


def _load(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", field="--gate") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML ({error})", field="--gate") from None


def _apply(gate: Gate, document: Mapping[str, Any], where: str, output_names: tuple[str, ...]) -> Gate:
    _check_keys(document, SECTIONS, where)
    if "encoder" in document:
        gate = _apply_encoder(gate, document["encoder"], f"{where}: encoder", output_names)
    if "layers" in document:
        gate = replace(gate, max_layer_l2=_numbers(document["layers"], LAYER_KEYS, f"{where}: layers").popitem()[1])
    if "answers" in document:
        limits = _numbers(document["answers"], ANSWER_KEYS, f"{where}: answers")
        answers: AnswerLimits = replace(gate.answers, **limits, required=True)
        gate = replace(gate, answers=answers)
    return gate


def _apply_encoder(gate: Gate, table: Any, where: str, output_names: tuple[str, ...]) -> Gate:
    _check_keys(table, (*ENCODER_KEYS, OUTPUT), where)
    own = {key: value for key, value in table.items() if key != OUTPUT}
    if own:
        numbers = _numbers(own, ENCODER_KEYS, where)
        outputs = {name: replace(limits, **numbers) for name, limits in gate.outputs.items()}
        gate = replace(gate, encoder=replace(gate.encoder, **numbers), outputs=outputs)
    outputs = table.get(OUTPUT, {})
    _check_keys(outputs, output_names, f"{where}.output")
    changed = {
        name: replace(gate.of_output(name), **_numbers(limits, ENCODER_KEYS, f"{where}.output.{name}"))
        for name, limits in outputs.items()
    }
    return replace(gate, outputs=gate.outputs | changed)


def _numbers(table: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    _check_keys(table, keys, where)
    if not table:
        raise InputError(f"{where} is empty", field="--gate", expected=" or ".join(keys))
    for key, value in table.items():
        top = 1 if key in ("min_cosine", "min_agreement") else float("inf")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= top:
            expected = "a number from 0 to 1" if top == 1 else "a number of at least 0"
            raise InputError(f"{where}.{key} is not a limit", field="--gate", expected=expected, got=repr(value)[:60])
    return dict(table)


def _check_table(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where} is not a table", field="--gate", got=repr(value)[:60])


def _check_keys(value: Any, known: tuple[str, ...], where: str) -> None:
    _check_table(value, where)
    for key in value:
        if key not in known:
            raise InputError(f"{where} has an unknown key", field="--gate", expected=" or ".join(known), got=key)
