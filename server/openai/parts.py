"""Media parts of a chat: embeddings or a reference by hash, and their provenance."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.bundle.model_hash import model_mismatch
from qwen3vl_edge.contract.errors import ContractError, InputError, LimitError, WireError
from qwen3vl_edge.contract.http.ledger import PIXELS, VISUAL_TOKENS, Account
from qwen3vl_edge.contract.http.openai_chat import Url
from qwen3vl_edge.contract.pixels.part_options import IMAGE_OPTIONS
from qwen3vl_edge.contract.pixels.policy import PixelPolicy
from qwen3vl_edge.contract.pixels.processor_arguments import FIELD, NO_ARGUMENTS, ProcessorArguments
from qwen3vl_edge.contract.wire.basis import Bases
from qwen3vl_edge.contract.wire.codec import decode_medium
from qwen3vl_edge.contract.wire.embedding_hash import HASH_FORM, is_hash
from qwen3vl_edge.contract.wire.request import Limits, MediaEmbeddings, MediaReference, ModelShape
from qwen3vl_edge.server.openai.pixels import PixelEncoder, open_data_uri, refuse_pixels
from qwen3vl_edge.server.openai.request import ChatMessage, Embeds, Part
from qwen3vl_edge.server.openai.tensor_formats import decode_base64, read_tensor, safetensors_layout

if TYPE_CHECKING:
    from PIL.Image import Image

GRID_BYTES = 4096  # limit for a container of three numbers
CONTAINER_BYTES = 2**16  # limit for a container's bytes beside its tensor


@dataclass(frozen=True)
class Medium:
    """An image or clip of a chat.

    Attributes:
        where: path of the part in the request.
        media: with its tensors, or by hash.
        source: "tensors", "hash" or "pixels".
        proven: whether the embeddings are known to be this model's: by a hash or `model_hash`, or encoded here.
        timestamps: seconds of each temporal patch of a clip.
        decoding: what was done to a picture as it was decoded here, as of `SeenPicture`.
    """

    where: str
    media: MediaEmbeddings | MediaReference
    source: str
    proven: bool
    timestamps: tuple[float, ...] = ()
    decoding: dict[str, str] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        return self.media.grid


@dataclass(frozen=True)
class PartReader:
    """Reads the media parts of one server's requests.

    Attributes:
        pixels: the vision tower, None without `--allow-pixels`.
        bases: bases of packed embeddings, by sha256.
        account: claims pixels and visual tokens before they are spent; None claims nothing.
        exif_orientation: pictures are turned as their EXIF says.
    """

    shape: ModelShape
    limits: Limits
    pixels: PixelEncoder | None = None
    bases: Bases = field(default_factory=dict)
    account: Account | None = None
    exif_orientation: bool = True

    def read(self, messages: Sequence[ChatMessage], arguments: ProcessorArguments = NO_ARGUMENTS) -> list[Medium]:
        """All media of a conversation in order. Blocks.

        Args:
            arguments: limits of pictures in place of the policy's.

        Raises:
            ContractError: a part is invalid, or there are too many; names it.
        """
        parts = list(media_parts(messages))
        if len(parts) > self.limits.max_media:
            limit = f"at most {self.limits.max_media} (max_media)"
            raise LimitError("too many images and clips", field="messages", expected=limit, got=len(parts))
        if self.pixels is None:  # before anything is decoded
            for where, part in parts:
                if part.type in ("image_url", "video_url"):
                    raise refuse_pixels(part.type, where)
        has_pixels = any(part.type == "image_url" for _, part in parts)
        if arguments != NO_ARGUMENTS and parts and not has_pixels:
            raise InputError(
                "nothing of this request is resized here",
                field=FIELD,
                expected="pictures (image_url)",
                remedy="Leave it out: the device that encoded the embeddings has resized.",
            )
        policy = None if self.pixels is None else self.pixels.policy.with_arguments(arguments, clips=False)
        media: list[Medium] = []
        budget = self.limits.max_visual_tokens
        for index, (where, part) in enumerate(parts):
            media.append(self._read(index, part, where, budget, policy))
            budget -= media[-1].grid.tokens(self.shape.merge_size)
        return media

    def _read(self, index: int, part: Part, where: str, budget: int, policy: PixelPolicy | None) -> Medium:
        if part.type == "image_url" and policy is not None and part.image_url is not None:
            return self._picture(part.image_url, where, budget, policy)
        if part.type not in ("image_embeds", "video_embeds"):
            raise refuse_pixels(part.type, where, allowed=self.pixels is not None)
        embeds = part.image_embeds or part.video_embeds
        assert embeds is not None
        return self._embeds(index, part.kind, embeds, f"{where}.{part.type}", budget)

    def _picture(self, given: Url | str, where: str, budget: int, policy: PixelPolicy) -> Medium:
        url, options = (given, {}) if isinstance(given, str) else (given.url, given.options)
        named, claim = f"{where}.image_url", partial(self._claim, PIXELS)
        decoding: dict[str, str] = {}

        def open_image() -> Image:
            seen = open_data_uri(url, named, claim, self.exif_orientation)
            decoding.update(seen.decoding)
            return seen.image

        assert self.pixels is not None
        try:
            decoding.update(policy.picture_evidence(options))
            check = partial(self._admit_grid, kind="image", where=where, budget=budget)
            medium = self.pixels.encode(open_image, check, policy, options)
        except InputError as error:
            error.field = f"{named}.{error.field}" if error.field in IMAGE_OPTIONS else error.field or named
            raise
        return Medium(where, medium, "pixels", True, decoding=decoding)

    def _embeds(self, index: int, kind: str, embeds: Embeds, where: str, budget: int) -> Medium:
        wrong = "video" if kind == "image" else "image"
        for name in (f"{wrong}_embeds", f"{wrong}_grid_thw", *(["timestamps"] if kind == "image" else [])):
            if getattr(embeds, name) is not None:
                raise InputError(f"{kind}_embeds has no {name}", field=f"{where}.{name}", remedy="Leave it out.")
        if embeds.hash is not None and not is_hash(embeds.hash):
            raise WireError(
                "invalid embedding hash", field=f"{where}.hash", expected=HASH_FORM, got=repr(embeds.hash)[:80]
            )
        self._check_model(embeds.model_hash, where)
        tensors, grid_value = getattr(embeds, f"{kind}_embeds"), getattr(embeds, f"{kind}_grid_thw")
        grid = None if grid_value is None else read_grid(grid_value, f"{where}.{kind}_grid_thw")
        if grid is not None:
            self._admit_grid(grid, kind, f"{where}.{kind}_grid_thw", budget)
        if tensors is None:
            if embeds.hash is None or grid is None:
                raise InputError(
                    f"{kind}_embeds has no embeddings", field=where, expected=f"{kind}_embeds, or hash and grid"
                )
            reference = MediaReference(index, kind, grid, embeds.hash)
            return Medium(where, reference, "hash", True, _timestamps(embeds, kind, grid, where))
        medium, model_hash = self._tensors(kind, tensors, grid, f"{where}.{kind}_embeds", budget)
        self._check_model(model_hash, where)
        proven = embeds.hash is not None or (embeds.model_hash or model_hash) is not None  # the hash is checked later
        if embeds.hash is not None:
            medium = MediaEmbeddings(kind, medium.grid, medium.embeds, medium.deepstack, hash=embeds.hash)
        return Medium(where, medium, "tensors", proven, _timestamps(embeds, kind, medium.grid, where))

    def _tensors(
        self, kind: str, text: str, grid: Grid | None, where: str, budget: int
    ) -> tuple[MediaEmbeddings, str | None]:
        """The embeddings, and the container's model hash if it has one."""
        row = self.shape.hidden_size * (1 + self.shape.deepstack_levels)
        tokens = budget if grid is None else grid.tokens(self.shape.merge_size)
        data = decode_base64(text, where, tokens * row * 4 + CONTAINER_BYTES)
        if data[8:9] == b"{" and "request" in safetensors_layout(data, where).metadata:
            return self._one_medium(kind, data, grid, where, budget)
        if grid is None:
            raise InputError("missing grid", field=where.removesuffix("embeds") + "grid_thw", expected="[t, h, w]")
        joined = read_tensor(data, where)
        if joined.shape != (tokens, row) or joined.dtype.kind != "f":
            raise WireError(
                "embeddings do not match their grid and the model",
                field=where,
                expected=f"floating-point [{tokens}, {row}]: embeddings and {self.shape.deepstack_levels} DeepStack "
                f"levels of {self.shape.hidden_size} side by side, for grid {grid}",
                got=f"{joined.dtype} {list(joined.shape)}",
            )
        levels = [np.ascontiguousarray(level) for level in np.split(joined, 1 + self.shape.deepstack_levels, axis=1)]
        return MediaEmbeddings(kind, grid, levels[0], tuple(levels[1:])), None

    def _one_medium(
        self, kind: str, data: bytes, grid: Grid | None, where: str, budget: int
    ) -> tuple[MediaEmbeddings, str | None]:
        """A part whose content is a body of `PUT /v1/embeddings/{sha256}`."""
        try:
            medium, model_hash = decode_medium(
                data,
                self.limits,
                self.bases,
                model=self.shape,
                # A grid that the part has was admitted with it.
                claim=partial(self._claim, VISUAL_TOKENS) if grid is None else lambda _: None,
            )
        except ContractError as error:
            error.field = f"{where}: {error.field}"
            raise
        if medium.kind != kind or (grid is not None and medium.grid != grid):
            raise WireError(
                "the container's kind or grid differs from the part's",
                field=where,
                expected=f"{kind} {grid or ''}",
                got=f"{medium.kind} {medium.grid}",
            )
        self._check_grid(medium.grid, kind, where, budget)
        return medium, model_hash

    def _claim(self, resource: str, amount: int) -> None:
        if self.account is not None:
            self.account.claim(resource, amount)

    def _admit_grid(self, grid: Grid, kind: str, where: str, budget: int) -> None:
        """Check a grid, and claim its visual tokens."""
        self._check_grid(grid, kind, where, budget)
        self._claim(VISUAL_TOKENS, grid.tokens(self.shape.merge_size))

    def _check_model(self, model_hash: str | None, where: str) -> None:
        if model_hash is not None and model_hash != self.shape.model_hash:
            raise model_mismatch(
                "the embeddings were made for another model",
                f"{where}.model_hash",
                self.shape.model_hash,
                model_hash,
                "Export the bundle from the checkpoint that the server runs.",
            )

    def _check_grid(self, grid: Grid, kind: str, where: str, budget: int) -> None:
        merge = self.shape.merge_size
        if min(grid.as_list()) < 1 or grid.h % merge or grid.w % merge or (kind == "image" and grid.t != 1):
            raise WireError(
                "invalid grid for the vision encoder",
                field=where,
                expected=f"t >= 1 (1 for an image), h and w positive multiples of {merge}",
                got=grid.as_list(),
            )
        if grid.tokens(merge) > budget:
            limit = f"at most {self.limits.max_visual_tokens} in a request (max_visual_tokens), {budget} left"
            raise LimitError("too many visual tokens", field=where, expected=limit, got=grid.tokens(merge))


def media_parts(messages: Sequence[ChatMessage]) -> Iterator[tuple[str, Part]]:
    """Every image and video part, with its path in the request."""
    for index, message in enumerate(messages):
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                if part.type != "text":
                    yield f"messages.{index}.content.{number}", part


def read_grid(value: str | list[Any], where: str) -> Grid:
    """[t, h, w] or [[t, h, w]], as JSON or as base64 of a tensor of whole numbers.

    Raises:
        WireError, LimitError: anything else.
    """
    if isinstance(value, str):
        tensor = read_tensor(decode_base64(value, where, GRID_BYTES), where)
        value = tensor.tolist() if tensor.dtype.kind == "i" and tensor.size == 3 else [tensor.dtype.name]
    row = value[0] if len(value) == 1 and isinstance(value[0], list) else value
    if len(row) != 3 or not all(type(number) is int and 0 <= number < 2**20 for number in row):
        raise WireError("grid must be three whole numbers", field=where, expected="[t, h, w]", got=repr(row)[:80])
    return Grid(*row)


def with_part_fields(error: ContractError, media: Sequence[Medium]) -> ContractError:
    """The same error, with the field of the medium's part: `embeds.2` is `messages.0.content.5.image_embeds`."""
    match = re.fullmatch(r"(embeds|deepstack|grid_thw|media)\.(\d+)(\.\w+)?", error.field or "", re.ASCII)
    if match and int(match[2]) < len(media):
        old, error.field = str(error.field), f"{media[int(match[2])].where}{match[3] or ''}"
        error.message = error.message.replace(repr(old), repr(error.field))
    return error


def _timestamps(embeds: Embeds, kind: str, grid: Grid, where: str) -> tuple[float, ...]:
    if kind == "image":
        return ()
    timestamps = embeds.timestamps or []
    if len(timestamps) != grid.t:
        raise InputError(
            "timestamps do not match the clip",
            field=f"{where}.timestamps",
            expected=f"{grid.t} seconds, one per temporal patch: the middle between its first and last frame",
            got=f"{len(timestamps)}",
            remedy="Send them: the prompt has a timestamp before each frame.",
        )
    return tuple(timestamps)
