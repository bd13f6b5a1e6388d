"""What a checkpoint asks for in generation_config.json reaches neither side of the comparison."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwen3vl_edge.edge_runtime.edge import Edge
from qwen3vl_edge.tools.dev.train_reference.heldout import mixed_prompts
from qwen3vl_edge.tools.parity.end_to_end import compare_prompts, open_both

TOKENS = 12
# Each alone changes some greedy answer, or draws it at random.
DEFAULTS = {
    "sampling, as released checkpoints have it": {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "penalties": {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.5},
    "beams": {"num_beams": 3, "length_penalty": 2.0},
    "lengths and suppressed tokens": {"min_new_tokens": TOKENS, "suppress_tokens": list(range(40, 200))},
}


@pytest.mark.parametrize("defaults", DEFAULTS.values(), ids=DEFAULTS)
def test_answers_are_compared_greedily(edge: Edge, reference: Path, tmp_path: Path, defaults: dict) -> None:  # type: ignore[type-arg]
    model = Path(shutil.copytree(reference, tmp_path / "model"))
    file = model / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | defaults))
    prompts = [(item.id, item.messages) for item in mixed_prompts(7)]
    split, unsplit = open_both(edge, model)
    results = compare_prompts(prompts, split, unsplit, TOKENS)
    assert [item.name for item in results if not item.agrees] == []
    assert max(max(item.kl) for item in results) < 1e-6
