"""The checkpoint's folder: tokenizer, processor, chat template and configuration."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from qwen3vl_edge.tools.dev.train_reference.questions import clip_questions, pair_questions, scene_questions
from qwen3vl_edge.tools.dev.train_reference.scenes import colour_clip, motion_clip, number_scene, object_scene
from qwen3vl_edge.tools.dev.train_reference.sizes import VISION_DEFAULTS

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PLAIN_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VISION = {
    "hidden_size": 128,
    "depth": 6,
    "num_heads": 4,
    "intermediate_size": 512,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 192,
    "num_position_embeddings": 576,
    "deepstack_visual_indexes": [1, 3, 4],
}
TEXT = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 100000.0,
        "mrope_section": [8, 8, 8],
        "mrope_interleaved": True,
    },
}
CHAT_TEMPLATE = """\
{%- set counts = namespace(images=0, videos=0) -%}
{%- macro show(content) -%}
{%- if content is string -%}{{- content -}}
{%- else -%}
{%- for part in content -%}
{%- if part.type in ('image', 'image_url') or 'image' in part or 'image_url' in part -%}
{%- set counts.images = counts.images + 1 -%}
{%- if add_vision_id -%}Picture {{ counts.images }}: {% endif -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' or 'video' in part -%}
{%- set counts.videos = counts.videos + 1 -%}
{%- if add_vision_id -%}Video {{ counts.videos }}: {% endif -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + show(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def corpus(seed: int = 5) -> list[str]:
    """Sentences to train the tokenizer on."""
    rng = random.Random(seed)
    found = ["user", "assistant", "system", "seconds", "You are a helpful assistant.", "Hello!", "Picture Video"]
    for _ in range(4000):
        items = scene_questions(rng, object_scene(rng, 192, 192, 5)) + scene_questions(
            rng, number_scene(rng, 192, 128, 3)
        )
        items += pair_questions(rng, object_scene(rng, 128, 128, 3), object_scene(rng, 128, 128, 3))
        items += clip_questions(rng, motion_clip(rng, 128, 128)) + clip_questions(rng, colour_clip(rng, 128, 128))
        found += [item.text for item in items] + [item.answer for item in items]
    return found


def train_tokenizer(vocab_size: int = 640) -> Any:
    """A byte-level BPE that splits as Qwen2's does, one token per digit."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TOKENS])
    return tokenizer


def write_layout(folder: Path) -> None:
    """Write everything but the weights."""
    from transformers import Qwen2TokenizerFast, Qwen3VLConfig

    folder.mkdir(parents=True, exist_ok=True)
    raw = train_tokenizer()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=raw,
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=8192,
        chat_template=None,
    )
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    ids = {token: raw.token_to_id(token) for token in SPECIAL_TOKENS}
    config = Qwen3VLConfig(
        vision_config=VISION,
        text_config={
            **TEXT,
            "vocab_size": -(-raw.get_vocab_size() // 8) * 8,
            "pad_token_id": ids["<|endoftext|>"],
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "tie_word_embeddings": True,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(folder)
    _write_processors(folder)
    _write(
        folder / "generation_config.json",
        {
            "do_sample": False,
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
        },
    )


def _write_processors(folder: Path) -> None:
    """The image and video processors' settings, with pixel limits of this checkpoint's own sizes."""
    half = [0.5, 0.5, 0.5]
    common = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, "image_mean": half, "image_std": half}
    _write(
        folder / "preprocessor_config.json",
        {
            **common,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen3VLProcessor",
            "size": {"shortest_edge": 4096, "longest_edge": 512 * 512},
        },
    )
    _write(
        folder / "video_preprocessor_config.json",
        {
            **common,
            "video_processor_type": "Qwen3VLVideoProcessor",
            "processor_class": "Qwen3VLProcessor",
            "size": {"shortest_edge": 4096, "longest_edge": 64 * 256 * 256},
            "fps": 2,
            "min_frames": 4,
            "max_frames": 64,
            "cap_pixels_per_frame": True,
            "max_video_tokens": VISION_DEFAULTS["video"]["max_pixels"] // 32**2,
            "do_sample_frames": True,
        },
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
