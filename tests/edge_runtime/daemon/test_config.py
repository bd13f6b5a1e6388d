"""Settings: file, environment, command line; a slip is named with where it came from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.formats.settings import settings_of, typed
from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.daemon.config import DaemonConfig, load_config
from qwen3vl_edge.server.options import ServerOptions


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


def test_cameras_come_from_the_file_alone() -> None:
    with pytest.raises(InputError, match="cannot be set in the environment") as refused:
        load_config(None, {"bundle": Path("b")}, {"QWEN3VL_EDGE_CAMERAS": "front"})
    assert (refused.value.field, refused.value.expected) == ("cameras", "tables [cameras.NAME]")


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"log_format": "xml"}, "log_format", "text or json"),
        ({"server_kind": "x"}, "--server-kind", "qwen3vl or openai"),
        ({"allowed_origins": ("https://*",)}, "allowed_origins", "scheme and host, such as https://example.org"),
        ({"deadline_s": float("nan")}, "deadline_s", "0.1 to 86400"),
    ],
)
def test_an_error_names_field_and_what_was_expected(changes: dict[str, Any], field: str, expected: str) -> None:
    with pytest.raises(InputError) as refused:
        DaemonConfig(bundle=Path("b"), **changes)
    assert (refused.value.field, refused.value.expected) == (field, expected)


@pytest.mark.parametrize("kind", [DaemonConfig, CameraConfig, ServerOptions])
def test_declarations_are_sound(kind: type) -> None:
    """Each field is a setting with help; its default is of its type, in its range and one of its choices."""
    declared = settings_of(kind)
    assert {item.name for item in fields(kind)} - {"name"} == set(declared)
    for name, item in declared.items():
        assert item.setting.help.endswith((".", "…")), name
        if item.setting.read is None and item.default is not None:
            assert typed(name, item.default, item.type, "the declaration") == item.default
        if item.setting.within is not None:
            assert item.setting.within[0] <= item.default <= item.setting.within[1], name
        assert not item.setting.known or item.default in item.setting.known, name


def test_limits_of_connections_are_settings() -> None:
    changes: dict[str, Any] = {"max_connections": 5, "max_connections_per_address": 4}
    changes |= {"head_timeout_s": 3.0, "write_timeout_s": 2.0}
    assert DaemonConfig(bundle=Path("b"), **changes).connection_limits == ConnectionLimits(5, 4, 3.0, 2.0)
    assert DaemonConfig(bundle=Path("b")).connection_limits == ConnectionLimits()


def test_what_a_reload_applies() -> None:
    reloadable = {name for name, item in settings_of(DaemonConfig).items() if item.setting.reloadable}
    assert reloadable == {
        "bundle", "backend", "provider", "target", "precision", "threads", "model", "cache", "cache_mib",
        "media_folders", "allow_private_urls", "fetch_timeout_s", "max_media_mib", "max_picture_pixels",
        "max_clip_pixels", "exif_orientation", "stack", "preprocess", "cameras", "clip_seconds", "self_test",
        "device", "dtype",
    }  # fmt: skip


def test_a_secret_is_not_in_the_text_of_the_settings() -> None:
    assert "hunter2" not in repr(DaemonConfig(bundle=Path("b"), server_api_key="hunter2"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        load_config(tmp_path / "nowhere.toml", {}, {})
