"""A bundle is opened only if its processor normalizes pixels as its graphs do."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3vl_edge.contract.bundle.open import open_bundle, open_model_of
from qwen3vl_edge.contract.errors import BundleError, ModelMismatchError
from tests.support.encoders.faulty_bundle import with_processor_edited
from tests.support.paths import REFERENCE, ROOT


@pytest.mark.parametrize(("kind", "file"), [("image", "preprocessor"), ("video", "video_preprocessor")])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_another_mean_or_std_than_the_manifests(
    kind: str, file: str, name: str, small_bundle: Path, tmp_path: Path
) -> None:
    edited = with_processor_edited(
        small_bundle, tmp_path / "b", f"{file}_config.json", **{f"image_{name}": [0.5, 0.5, 0.48]}
    )
    with pytest.raises(BundleError, match=rf"{kind} {name} of.*\(0\.5, 0\.5, 0\.5\), got \(0\.5, 0\.5, 0\.48\)"):
        open_bundle(edited, verify=False)


def test_a_bundle_of_an_earlier_release_has_a_hash_that_cannot_be_compared() -> None:
    bundle = open_bundle(ROOT / "tests/support/files_of_an_earlier_version/bundle")
    with pytest.raises(ModelMismatchError, match=r"another release.*Export the bundle again: qwen3vl-edge export"):
        open_model_of(bundle, str(REFERENCE))
