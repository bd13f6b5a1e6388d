"""Write docs/reference/cli.md from the command line itself.

    python -m qwen3vl_edge.tools.dev.cli_page > docs/reference/cli.md

typer's own `typer MODULE utils docs` cuts commands' descriptions off, writes HTML entities, and its types of options
differ from one release to the next; this page must be the same with each release that pyproject.toml allows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from qwen3vl_edge.tools.cli.main import app

INTRODUCTION = """# Command line

<!-- Written by `python -m qwen3vl_edge.tools.dev.cli_page`; change the commands in tools/cli, not this page. -->

Bad input is one line on stderr and exit code 2. Options of `edge` and `server` are a part of their
[settings](settings.md)."""


def page() -> str:
    """The page in Markdown."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join([INTRODUCTION, str(group.help), *_commands(group, "qwen3vl-edge")]) + "\n"


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{path} {name}"
        arguments = [item for item in command.params if item.param_type_name == "argument"]
        options = [item for item in command.params if item.param_type_name == "option"]
        lines = [_line(item, [item.name.upper()]) for item in arguments]
        lines += [_line(item, [*item.opts, *item.secondary_opts]) for item in options]
        usage = " ".join([full, *map(_usage, arguments), *(["[OPTIONS]"] if options else [])])
        yield f"## {full}\n\n{command.help}\n\n```\n{usage}\n```\n\n" + "\n".join(lines)
        if hasattr(command, "commands"):
            yield from _commands(command, full)


def _usage(argument: Any) -> str:
    name = argument.name.upper()
    return name if argument.required else f"[{name}]"


def _line(item: Any, names: list[str]) -> str:
    help, is_flag = getattr(item, "help", None) or "", getattr(item, "is_flag", False)
    facts = []
    if item.required:
        facts.append("required")
    elif isinstance(item.show_default, str):  # the setting's default, where the option itself has none
        facts.append(f"default `{item.show_default}`")
    elif item.secondary_opts:
        facts.append(f"default `{item.opts[0] if item.default else item.secondary_opts[0]}`")
    elif not is_flag and item.default not in (None, "", [], ()):
        facts.append(f"default `{item.default}`")
    text = f"- {', '.join(f'`{name}`' for name in names)}: {help}".rstrip(": ")
    return text + (f" ({', '.join(facts)})" if facts else "")


if __name__ == "__main__":
    sys.stdout.write(page())
