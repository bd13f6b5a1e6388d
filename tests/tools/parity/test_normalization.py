"""Parity fails where the bundle's processor says another mean or deviation than its graphs were made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.encoders.faulty_bundle import with_processor_edited
from tests.support.run_cli import run_here

IMAGE, VIDEO = "preprocessor_config.json", "video_preprocessor_config.json"


@pytest.mark.parametrize(
    ("file", "key", "field"),
    [
        (IMAGE, "image_mean", "image mean"),
        (IMAGE, "image_std", "image std"),
        (VIDEO, "image_mean", "video mean"),
        (VIDEO, "image_std", "video std"),
    ],
)
def test_parity_fails_and_names_the_field(
    file: str, key: str, field: str, small_bundle: Path, reference: Path, tmp_path: Path
) -> None:
    """Qwen2-VL's first channel in place of Qwen3-VL's 0.5; the manifest vouches for the file."""
    faulty = with_processor_edited(small_bundle, tmp_path / "bundle", file, **{key: [0.48145466, 0.5, 0.5]})
    done = run_here("parity", "--bundle", faulty, "--model", reference)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"the {field} of the processor in" in line
    assert "expected (0.5, 0.5, 0.5), got (0.48145466, 0.5, 0.5)" in line
