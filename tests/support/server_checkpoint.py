"""Tiny random Qwen3-VL checkpoints, dense and MoE, and the unsplit model as oracle."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from qwen3vl_edge.contract.bundle.checkpoint import Checkpoint, open_checkpoint
from qwen3vl_edge.contract.bundle.grid import Grid
from qwen3vl_edge.contract.wire.request import GenerateRequest, MediaEmbeddings, Sampling

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>"]
CORPUS = [
    "What is in the picture? A red circle left of a blue square.",
    "그림에 무엇이 있나요? 빨간 원이 있습니다. 한국어 텍스트",
    "0.5 seconds",
]
HIDDEN, LEVELS, MAX_POSITIONS = 64, 3, 512
VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 1, 2],
    "initializer_range": 0.2,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that knows every byte and few words, so Korean splits inside characters."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def build_text(vocabulary: int, head_dim: int = 16) -> dict[str, Any]:
    """`text_config` of a tiny dense model, with weights large enough for pictures to matter."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [head_dim // 4, head_dim // 8, head_dim // 8],
            "mrope_interleaved": True,
        },
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }


@cache
def make_checkpoint(moe: bool = False, head_dim: int = 16) -> Path:
    """Write a random checkpoint, once per process; its weights are large enough for pictures to matter."""
    torch.manual_seed(11 if moe else 7)
    scratch = Path(tempfile.mkdtemp(prefix="qwen3vl-tiny-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    folder = scratch / ("tiny-moe" if moe else "tiny-dense")
    words = tokenizer()
    text = build_text(len(words), head_dim)
    if moe:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
    ids = {
        name: words.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    kind, config_kind = (
        (Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig)
        if moe
        else (Qwen3VLForConditionalGeneration, Qwen3VLConfig)
    )
    config = config_kind(
        text_config=text,
        vision_config=VISION,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=False,
    )
    model = kind(config).float()
    model.generation_config.eos_token_id = [
        words.convert_tokens_to_ids("<|im_end|>"),
        words.convert_tokens_to_ids("<|endoftext|>"),
    ]
    model.generation_config.pad_token_id = words.convert_tokens_to_ids("<|endoftext|>")
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Oracle:
    """The unsplit model in fp32, and requests built from its own encoder."""

    checkpoint: Checkpoint
    model: Any
    tokenizer: Any

    def encode(self, kind: str, grid: Grid, seed: int, dtype: str = "float32") -> tuple[MediaEmbeddings, torch.Tensor]:
        """A random picture or clip: its embeddings from the oracle's encoder, and its patches."""
        generator = torch.Generator().manual_seed(seed)
        vision = self.model.config.vision_config
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(grid.patches, width, generator=generator)
        encode = self.model.get_image_features if kind == "image" else self.model.get_video_features
        with torch.no_grad():
            output = encode(pixels, torch.tensor([grid.as_list()]))
        levels = getattr(output, "deepstack_features", None) or ()  # not of an encoder without DeepStack
        deepstack = tuple(level[0].numpy().astype(dtype) for level in levels)
        return MediaEmbeddings(kind, grid, output.pooler_output[0].numpy().astype(dtype), deepstack), pixels

    def ids(self, *parts: str | Grid | tuple[str, Grid]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Token ids of text, images (a `Grid`) and clips (("video", grid), a timestamp before each frame)."""
        ids: list[int] = []
        for part in parts:
            if isinstance(part, str):
                ids += self.tokenizer.encode(part)
            elif isinstance(part, Grid):
                ids += self._span("<|image_pad|>", part.tokens(2))
            else:
                for frame in range(part[1].t):
                    ids += self.tokenizer.encode(f"<{frame + 0.5:.1f} seconds>")
                    ids += self._span("<|video_pad|>", part[1].tokens(2) // part[1].t)
        return np.array(ids, dtype=np.int64)

    def _span(self, token: str, count: int) -> list[int]:
        names = ["<|vision_start|>", *[token] * count, "<|vision_end|>"]
        return list(self.tokenizer.convert_tokens_to_ids(names))

    def greedy(self, case: Case, max_new_tokens: int, **options: Any) -> list[int]:
        """The unsplit model's own answer, from pixels; `options` are those of `generate`."""
        inputs = self._inputs(case)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, **options)
        return list(output[0, inputs["input_ids"].shape[1] :].tolist())

    def logits(self, case: Case) -> torch.Tensor:
        """[vocabulary], after the last token of the prompt."""
        with torch.inference_mode():
            found: torch.Tensor = self.model(**self._inputs(case)).logits[0, -1]
        return found

    def _inputs(self, case: Case) -> dict[str, Any]:
        config = self.model.config
        ids = torch.from_numpy(case.request.input_ids)[None]
        types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for kind, pixels, grids in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            chosen = [
                (item, patches)
                for item, patches in zip(case.request.media, case.pixels, strict=True)
                if item.kind == kind
            ]
            if chosen:
                inputs[pixels] = torch.cat([patches for _, patches in chosen])
                inputs[grids] = torch.tensor([item.grid.as_list() for item, _ in chosen])
                inputs["mm_token_type_ids"] = types
        self.model.model.rope_deltas = None
        return inputs


@dataclass(frozen=True)
class Case:
    """A request and the patches that its embeddings came from."""

    name: str
    request: GenerateRequest
    pixels: tuple[torch.Tensor, ...]


@cache
def oracle(moe: bool = False, head_dim: int = 16) -> Oracle:
    folder = make_checkpoint(moe, head_dim)
    kind = Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    return Oracle(open_checkpoint(str(folder)), model, PreTrainedTokenizerFast.from_pretrained(folder))


CASE_NAMES = ("one image", "two images", "clip", "image and clip", "clip before image", "text only", "multi-turn")


@cache
def make_case(
    name: str, moe: bool = False, dtype: str = "float32", max_new_tokens: int = 12, head_dim: int = 16
) -> Case:
    """One of `CASE_NAMES` as a request with the oracle's embeddings."""
    return build_case(oracle(moe, head_dim), name, dtype, max_new_tokens)


def build_case(source: Oracle, name: str, dtype: str = "float32", max_new_tokens: int = 12) -> Case:
    """As `make_case`, for any oracle."""
    wide, tall, clip = Grid(1, 4, 6), Grid(1, 6, 4), Grid(3, 4, 4)
    user, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    layouts: dict[str, tuple[Any, ...]] = {
        "one image": (user, wide, "What is in the picture?", end),
        "two images": (user, wide, tall, "Which one is red?", end),
        "clip": (user, ("video", clip), "What moves?", end),
        "image and clip": (user, wide, "and", ("video", clip), "그림에 무엇이 있나요?", end),
        "clip before image": (user, ("video", clip), "and", tall, wide, "left of?", end),
        "text only": (user, "What is in the picture? 한국어", end),
        "multi-turn": (user, wide, "What?", end, "A red circle", "<|im_end|>\n", user, tall, "And here?", end),
    }
    parts = layouts[name]
    media = []
    for index, part in enumerate(parts):
        if isinstance(part, Grid):
            media.append(source.encode("image", part, 100 + index, dtype))
        elif isinstance(part, tuple):
            media.append(source.encode("video", part[1], 200 + index, dtype))
    request = GenerateRequest(
        model_hash=source.checkpoint.model_hash,
        input_ids=source.ids(*parts),
        media=tuple(item for item, _ in media),
        sampling=Sampling(max_new_tokens=max_new_tokens),
        request_id=name,
    )
    return Case(name, request, tuple(pixels for _, pixels in media))
