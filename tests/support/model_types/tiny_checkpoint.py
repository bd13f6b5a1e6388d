"""A tiny random checkpoint of each model type, saved by transformers, and its unsplit model as oracle.

The tokenizer is that of tests/support/server_checkpoint.py, so that its requests (`build_case`) are of these too.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from qwen3vl_edge.contract.bundle.checkpoint import open_checkpoint
from qwen3vl_edge.contract.model_types import MODEL_TYPES
from tests.support.server_checkpoint import VISION, Oracle, build_text, tokenizer

# Macros, a counter in a namespace, and the turn of thinking: as in the templates of Qwen3.5 and later.
CHAT_TEMPLATE = """\
{%- set image_count = namespace(value=0) %}
{%- set video_count = namespace(value=0) %}
{%- macro shown(content, counted) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for item in content %}
            {%- if item.type in ('image', 'image_url') or 'image' in item or 'image_url' in item %}
                {%- if counted %}{%- set image_count.value = image_count.value + 1 %}{%- endif %}
                {%- if add_vision_id %}{{- 'Picture ' ~ image_count.value ~ ': ' }}{%- endif %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif item.type == 'video' or 'video' in item %}
                {%- if counted %}{%- set video_count.value = video_count.value + 1 %}{%- endif %}
                {%- if add_vision_id %}{{- 'Video ' ~ video_count.value ~ ': ' }}{%- endif %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in item %}{{- item.text }}
            {%- else %}{{- raise_exception('unknown item') }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- set content = shown(message.content, true) | trim %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}{{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""
# Three of four layers are Gated DeltaNet; rotary turns a quarter of each head: 8 of 32 values, 4 frequencies.
_HYBRID: dict[str, Any] = {
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}


def tiny_config(model_type: str, **vision: Any) -> Any:
    """The config of a tiny model of a type; `vision` replaces values of the tower."""
    kind, words = MODEL_TYPES[model_type], tokenizer()
    tower = {name: value for name, value in VISION.items() if name != "deepstack_visual_indexes" or kind.deepstack}
    text = build_text(len(words)) | {"hidden_size": (tower | vision)["out_hidden_size"]}
    if kind.recurrent:
        text |= _HYBRID
    if model_type.endswith("_moe"):
        text |= _EXPERTS | ({"shared_expert_intermediate_size": 48} if kind.recurrent else {})
    ids = {
        f"{name}_id": words.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image_token", "image_pad"),
            ("video_token", "video_pad"),
            ("vision_start_token", "vision_start"),
            ("vision_end_token", "vision_end"),
        )
    }
    return AutoConfig.for_model(model_type, text_config=text, vision_config=tower | vision, **ids)


@cache
def tiny_checkpoint(model_type: str) -> Path:
    """Write a random checkpoint of a type with its processor, once per process."""
    torch.manual_seed(5)
    scratch = Path(tempfile.mkdtemp(prefix="qwen3vl-type-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    folder = scratch / f"tiny-{model_type}"
    words = tokenizer()
    model = AutoModelForImageTextToText.from_config(tiny_config(model_type)).float()
    for name, value in model.model.visual.named_parameters():  # as trained: a lost bias or norm must show
        if value.ndim == 1:
            torch.nn.init.normal_(value, mean=float(".norm" in name and name.endswith("weight")), std=0.2)
    for name, value in model.model.language_model.named_parameters():  # as trained: states last, from 2 to 60 tokens
        if name.endswith("A_log"):
            torch.nn.init.uniform_(value, -4.5, -1.0)
    end, pad = words.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [end, pad], pad
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    # As transformers builds it for this type, so that the file splits text in the same way.
    save_processor(folder, AutoTokenizer.from_pretrained(folder))
    return folder


def save_processor(folder: Path, words: Any) -> None:
    """The type's processor, with small pixel limits."""
    limits = {"shortest_edge": 4096, "longest_edge": 256 * 256}
    half = [0.5, 0.5, 0.5]
    Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, size=limits, image_mean=half, image_std=half),
        tokenizer=words,
        video_processor=Qwen3VLVideoProcessor(size=limits | {"longest_edge": 64 * 256 * 256}),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


@cache
def oracle_of(model_type: str) -> Oracle:
    """The unsplit model of the tiny checkpoint, in fp32."""
    folder = tiny_checkpoint(model_type)
    kind = getattr(transformers, MODEL_TYPES[model_type].language_model)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    return Oracle(open_checkpoint(str(folder)), model, AutoTokenizer.from_pretrained(folder))
