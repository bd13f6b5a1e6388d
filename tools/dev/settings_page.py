"""Write docs/reference/settings.md from the settings' declarations.

python -m qwen3vl_edge.tools.dev.settings_page > docs/reference/settings.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from qwen3vl_edge.contract.formats.settings import Declared, settings_of
from qwen3vl_edge.edge_runtime.cameras.config import CameraConfig
from qwen3vl_edge.edge_runtime.daemon import config
from qwen3vl_edge.server import options

INTRODUCTION = """# Settings

<!-- Written by `python -m qwen3vl_edge.tools.dev.settings_page`; change the declarations, not this page. -->

A setting comes from a TOML file (`--config FILE`), from the environment over it, or from the command line over both.
An unknown setting, a value of the wrong type and a value out of range are one line and exit code 2. In the environment,
paths of a list are separated as in `PATH`, words of a list by commas, and a bool is `true`, `false`, `1` or `0`."""
EDGE = """## qwen3vl-edge edge

Settings of the [daemon](../guides/daemon.md). Those with *reload* are applied by SIGHUP; after a change of another,
restart the daemon."""
CAMERAS = """## Cameras

Settings of one `[cameras.NAME]` table of the daemon's file ([cameras](../guides/daemon/cameras.md))."""
SERVER = """## qwen3vl-edge server

Settings of the [server](../guides/server.md). After a change, restart it."""


def page() -> str:
    """The page in Markdown."""
    parts = [
        INTRODUCTION,
        EDGE,
        *_entries(config.DaemonConfig, config.ENVIRONMENT),
        CAMERAS,
        *_entries(CameraConfig, ""),
        SERVER,
        *_entries(options.ServerOptions, options.ENVIRONMENT),
    ]
    return "\n\n".join(parts) + "\n"


def _entries(kind: type, prefix: str) -> Iterator[str]:
    for item in settings_of(kind).values():
        yield f"### {item.name}\n\n{item.setting.help}\n\n" + " · ".join(_facts(item, prefix))


def _facts(item: Declared, prefix: str) -> Iterator[str]:
    declared = item.setting
    yield "required" if item.required else f"default {_shown(item.default)}"
    if declared.known:
        yield "one of " + ", ".join(f"`{choice}`" for choice in declared.known if choice)
    else:
        yield _TYPES.get(item.type, "") or declared.form
    if item.type in _TYPES and declared.form:
        yield f"as {declared.form}"
    if declared.within is not None:
        yield "{:,} to {:,}".format(*declared.within)
    if declared.option is not None:
        yield f"`{declared.option}`"
    if declared.file_only or not prefix:
        yield "in the file only"
    else:
        yield f"`{prefix}{item.name.upper()}`"
    if declared.reloadable:
        yield "*reload*"


_TYPES = {
    "int": "integer",
    "float": "number",
    "str": "text",
    "bool": "bool",
    "Path": "path",
    "tuple[Path, ...]": "list of paths",
    "tuple[str, ...]": "list of texts",
}


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, (int, float)):
        return f"`{default:g}`" if isinstance(default, float) and default < 1e5 else f"`{int(default)}`"
    if isinstance(default, Path) or (isinstance(default, str) and default):
        return f"`{default}`"
    return "none"


if __name__ == "__main__":
    sys.stdout.write(page())
