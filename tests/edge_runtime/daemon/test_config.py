"""Settings: file, environment, command line; a slip is named with where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.edge_runtime.daemon.config import load_config


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return path


def test_the_nearer_wins(tmp_path: Path) -> None:
    path = write(tmp_path, 'bundle = "b"\nport = 1\nthreads = 2\nmedia_folders = ["/a", "/b"]\ndeadline_s = 2\n')
    config = load_config(path, {"port": 3, "host": None}, {"QWEN3VL_EDGE_PORT": "2", "QWEN3VL_EDGE_THREADS": "4"})
    assert (config.port, config.threads, config.host) == (3, 4, "127.0.0.1")
    assert config.media_folders == (Path("/a"), Path("/b"))
    assert config.deadline_s == 2.0


def test_the_environment_has_every_type() -> None:
    found = load_config(
        None,
        {"bundle": Path("b")},
        {
            "QWEN3VL_EDGE_MEDIA_FOLDERS": "/a:/b",
            "QWEN3VL_EDGE_ALLOW_PRIVATE_URLS": "true",
            "QWEN3VL_EDGE_DEADLINE_S": "1.5",
            "QWEN3VL_EDGE_CACHE": "/c",
            "QWEN3VL_EDGE_PRECISION": "int8",
            "UNRELATED": "x",
        },
    )
    assert found.media_folders == (Path("/a"), Path("/b"))
    assert (found.allow_private_urls, found.deadline_s, found.cache) == (True, 1.5, Path("/c"))
    assert found.precision == "int8"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 8080", "no bundle"),
        ('bundle = "b"\nprot = 8080', "Did you mean port"),
        ('bundle = "b"\nport = "many"', "port"),
        ('bundle = "b"\nport = true', "port"),
        ('bundle = "b"\nport = 80.5', "port"),
        ('bundle = "b"\nport = 70000', "0 to 65535"),
        ('bundle = "b"\nmax_waiting = 0', "max_waiting"),
        ('bundle = "b"\nserver = "example.org"', "http"),
        ('bundle = "b"\nallow_private_urls = "perhaps"', "allow_private_urls"),
        ('bundle = "b"\nmedia_folders = 3', "media_folders"),
        ("bundle = ", "not TOML"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as refused:
        load_config(write(tmp_path, text), {}, {})
    assert words in f"{refused.value} {refused.value.field}"


@pytest.mark.parametrize(("environment", "words"), [({"QWEN3VL_EDGE_PRT": "1"}, "the environment"),
                                                    ({"QWEN3VL_EDGE_PORT": "x"}, "the environment")])  # fmt: skip
def test_where_it_came_from_is_said(environment: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_config(None, {"bundle": Path("b")}, environment)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_config(tmp_path / "nowhere.toml", {}, {})
