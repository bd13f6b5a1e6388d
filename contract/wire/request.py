"""A decoded generation request, and the limits it is validated against."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.errors import WireError
from qwen3vl_edge.contract.wire.basis import Basis
from qwen3vl_edge.contract.wire.packing import PACKINGS, Packed, Packing, pack, unpack

KINDS = ("image", "video")


def tensor_names(index: int, levels: int) -> list[str]:
    """Names of a request's medium `index`, in bodies and errors: the embeddings, then each DeepStack level."""
    return [f"embeds.{index}", *(f"deepstack.{index}.{level}" for level in range(levels))]


@dataclass(frozen=True)
class MediaEmbeddings:
    """One image or clip as its embeddings.

    Attributes:
        kind: "image" or "video".
        grid: the grid it was encoded in.
        embeds: float16 or float32 [n, D], n = t·h·w / merge².
        deepstack: one array [n, D] per DeepStack level.
        origin: how they were computed, for logs and evidence: native grid, scale, distortion, precision.
        hash: `embedding_hash` (embedding_hash.py) as sent; None if the sender does not want them stored.
        packed: `embeds`, then each level, in their packed wire form; it unpacks to the arrays above.
        basis: sha256 of the basis whose coefficients `packed` contains; None if it contains the rows themselves.
    """

    kind: str
    grid: Grid
    embeds: NDArray[Any]
    deepstack: tuple[NDArray[Any], ...]
    origin: dict[str, Any] = field(default_factory=dict)
    hash: str | None = None
    packed: tuple[Packed, ...] = ()
    basis: str | None = None

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """All its tensors: the embeddings, then each DeepStack level."""
        return self.embeds, *self.deepstack

    @property
    def wide_packed(self) -> bool:
        """Whether its packed values are beyond float16's range; bf16's always unpack to float32, without saying so."""
        return any(item.packing.name != "bf16" and item.packing.unpacked == "<f4" for item in self.packed)

    @property
    def packed_by_tensor(self) -> bool:
        """Whether its first tensors are packed finer than the others."""
        return any(PACKINGS[item.packing.name].finer is not None for item in self.packed)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of all its tensors."""
        return tuple(array.shape for array in self.arrays)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def pack_media(media: MediaEmbeddings, packing: Packing, basis: Basis | None = None) -> MediaEmbeddings:
    """Pack media; the result's arrays are the unpacked values, so both ends compute with and hash the same ones.

    Args:
        media: float16; the encoder's own values for bf16, and where float16 cannot hold them.
        basis: send packed coefficients in this basis.

    Raises:
        WireError: the width is not a multiple of the packing's group size, or the basis has other tensors.
    """
    origin = media.origin | {"wire": packing.name if basis is None else f"basis-{packing.name}"}
    if basis is None:
        packed = _pack_each(media, packing)
        if packing.name != "bf16" and any(item.exceeds_float16 for item in packed):
            packed = _pack_each(media, packing.wide)
        embeds, *deepstack = map(unpack, packed)
        return replace(media, embeds=embeds, deepstack=tuple(deepstack), origin=origin, packed=packed)
    if [array.shape[1] for array in media.arrays] != [basis.columns] * len(basis.tensors):
        raise WireError("wrong number of tensors for the basis", expected=len(basis.tensors), got=len(media.arrays))
    pairs = list(zip(media.arrays, basis.tensors, strict=True))
    packed = tuple(pack(tensor.coefficients(array), packing) for array, tensor in pairs)
    embeds, *deepstack = (tensor.rows(unpack(item)) for item, (_, tensor) in zip(packed, pairs, strict=True))
    name = basis.sha256
    origin |= {"basis": name}
    return replace(media, embeds=embeds, deepstack=tuple(deepstack), origin=origin, packed=packed, basis=name)


def _pack_each(media: MediaEmbeddings, packing: Packing) -> tuple[Packed, ...]:
    return tuple(pack(array, packing.of_tensor(index)) for index, array in enumerate(media.arrays))


@dataclass(frozen=True)
class MediaReference:
    """One image or clip that is named by the hash of its embeddings, which the server should hold.

    Attributes:
        index: its index among the request's media.
    """

    index: int
    kind: str
    grid: Grid
    hash: str
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """Generation parameters, named as in transformers' `GenerationConfig`; greedy by default.

    The last three are OpenAI's, applied as vLLM does (`vllm/v1/sample/sampler.py`): the bias is added to the logits,
    then comes the repetition penalty, then a token that the answer has n times loses n times the frequency penalty
    and once the presence penalty; temperature and truncation follow.

    Attributes:
        presence_penalty, frequency_penalty: -2 to 2, of the answer's tokens alone.
        logit_bias: pairs of token id and bias, -100 to 100, in the order of ids; an object by id in JSON.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 50
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @classmethod
    def from_dict(cls, values: Any) -> Sampling:
        """Validate a JSON object of sampling parameters.

        Raises:
            WireError: an unknown name, a wrong type or a value out of range.
        """
        if not isinstance(values, dict):
            raise WireError("sampling is not an object", field="sampling", got=type(values).__name__)
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise WireError(
                    "unknown sampling parameter", field=f"sampling.{name}"[:80], expected=", ".join(sorted(known))
                )
        for name, value in values.items():
            _check_sampling(name, value)
        typed: dict[str, Any] = {name: _typed(name, value) for name, value in values.items()}
        return cls(**typed)

    def to_dict(self) -> dict[str, Any]:
        """JSON's object. Older servers refuse the names of _ONLY_IF_SET, so they are there only if they are set."""
        values = {name: value for name, value in asdict(self).items() if value or name not in _ONLY_IF_SET}
        if self.logit_bias:
            values["logit_bias"] = {str(token): bias for token, bias in self.logit_bias}
        return values

    @property
    def penalties(self) -> dict[str, Any]:
        """The penalties and biases in force, for evidence: with them, even a greedy answer is not the model's own."""
        names = _ONLY_IF_SET if self.repetition_penalty == 1.0 else {*_ONLY_IF_SET, "repetition_penalty"}
        return {name: value for name, value in self.to_dict().items() if name in names}


MAX_BIASES = 300  # OpenAI's limit
MAX_BIAS = 100.0
_ONLY_IF_SET = frozenset({"presence_penalty", "frequency_penalty", "logit_bias"})

_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,17}")  # of 64 bits
# name: (type, lowest, highest, may be null); bounds are inclusive
_SAMPLING_RANGES: dict[str, tuple[type, float, float, bool]] = {
    "max_new_tokens": (int, 1, 1_000_000, False),
    "do_sample": (bool, 0, 1, False),
    "temperature": (float, 1e-3, 100.0, False),
    "top_p": (float, 1e-6, 1.0, False),
    "top_k": (int, 0, 1_000_000, False),
    "min_p": (float, 0.0, 1.0, True),
    "repetition_penalty": (float, 1e-3, 100.0, False),
    "seed": (int, 0, 2**63 - 1, True),
    "presence_penalty": (float, -2.0, 2.0, False),
    "frequency_penalty": (float, -2.0, 2.0, False),
}


def _typed(name: str, value: Any) -> Any:
    """A checked value in its type: JSON may write a float as an integer, and transformers rejects a penalty of 2."""
    if name == "logit_bias":
        return tuple(sorted((int(token), float(bias)) for token, bias in value.items()))
    return float(value) if _SAMPLING_RANGES[name][0] is float and value is not None else value


def _check_bias(value: Any) -> None:
    """Each id once, as JSON writes an integer: "7" and "07" would be two biases of one token."""
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise WireError(
            "logit_bias is not an object of biases by token id",
            field="sampling.logit_bias",
            expected=f"an object of at most {MAX_BIASES}",
            got=len(value) if isinstance(value, dict) else type(value).__name__,
        )
    for token, bias in value.items():
        if not isinstance(token, str) or not _TOKEN_ID.fullmatch(token):
            raise WireError(
                "a key of logit_bias is not a token id",
                field="sampling.logit_bias",
                expected="a decimal number",
                got=repr(token)[:80],
            )
        typed = isinstance(bias, (int, float)) and not isinstance(bias, bool)
        if not typed or not -MAX_BIAS <= bias <= MAX_BIAS:
            raise WireError(
                "a bias is out of range",
                field=f"sampling.logit_bias.{token}",
                expected=f"a number from {-MAX_BIAS:g} to {MAX_BIAS:g}",
                got=repr(bias)[:80],
            )


def _check_sampling(name: str, value: Any) -> None:
    if name == "logit_bias":
        _check_bias(value)
        return
    kind, low, high, nullable = _SAMPLING_RANGES[name]
    if value is None and nullable:
        return
    accepted = (int, float) if kind is float else (kind,)
    typed = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    if not typed or not low <= value <= high:
        raise WireError(
            "sampling parameter is out of range",
            field=f"sampling.{name}",
            expected=f"{kind.__name__} from {low:g} to {high:g}",
            got=repr(value)[:80],
        )


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt whose pictures are embeddings.

    Attributes:
        model_hash: `Checkpoint.model_hash` of the model that made the embeddings; None skips the check
            (the JSON endpoint for debugging, text-only prompts).
        input_ids: int64 [L], placeholders expanded: n per image, n/t per frame of a clip.
        media: images and clips in the order of their placeholders.
        attention_mask: int64 [L] of 0 and 1, or None for all ones.
        logprobs: number of likeliest tokens to return at each position; None for no log-probabilities. Not part of
            the binary form.
    """

    model_hash: str | None
    input_ids: NDArray[np.int64]
    media: tuple[MediaEmbeddings, ...] = ()
    attention_mask: NDArray[np.int64] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stream: bool = False
    request_id: str = ""
    logprobs: int | None = None

    def of_kind(self, kind: str) -> list[MediaEmbeddings]:
        return [item for item in self.media if item.kind == kind]


@dataclass(frozen=True)
class Limits:
    """The most a server takes in one request."""

    max_body_bytes: int = 256 * 2**20
    max_prompt_tokens: int = 32_768
    max_media: int = 64
    max_visual_tokens: int = 16_384
    max_new_tokens: int = 4_096


@dataclass(frozen=True)
class ModelShape:
    """The properties of the server's model that a request's tensors are checked against.

    Attributes:
        largest: magnitude that the model's dtype holds, 65,504 for float16.
    """

    model_hash: str
    hidden_size: int
    deepstack_levels: int
    merge_size: int
    vocab_size: int
    image_token_id: int
    video_token_id: int
    largest: float = math.inf
