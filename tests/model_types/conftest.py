"""A bundle of each model type's tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from qwen3vl_edge.export.bundle import export_bundle
from tests.support.model_types.tiny_checkpoint import tiny_checkpoint


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An fp32 bundle by model type, exported when it is first asked for."""

    @cache
    def export(model_type: str) -> Path:
        folder = tmp_path_factory.mktemp("types") / model_type
        export_bundle(str(tiny_checkpoint(model_type)), folder, image_buckets="64x96,128x128", video_buckets="4x64x64")
        return folder

    return export
