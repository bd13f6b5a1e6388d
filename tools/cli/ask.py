"""`qwen3vl-edge ask`: print the answer as it streams, then where the time went."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.contract.wire.request import Sampling
from qwen3vl_edge.edge_runtime.ask import Answer, ask, build_messages
from qwen3vl_edge.edge_runtime.client.server_access import access_from_environment
from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge


def run(
    question: str,
    bundle: Path,
    server: str,
    images: list[str],
    videos: list[str],
    conversation: Path | None,
    max_new_tokens: int,
    options: EdgeOptions,
    as_json: bool,
) -> None:
    """Ask one question; the server's token and certificates come from the environment, not from a process list.

    Raises:
        ContractError: any input, bundle or server error.
    """
    history = _read_messages(conversation) if conversation else []
    messages = history + build_messages(question, images, videos)
    with open_edge(bundle, options) as edge:
        show = (lambda text: None) if as_json else _print_text
        sampling = Sampling(max_new_tokens=max_new_tokens)
        answer = ask(edge, server, messages, sampling, show, access_from_environment())
    if as_json:
        sys.stdout.write(json.dumps(asdict(answer), ensure_ascii=False, indent=1) + "\n")
    else:
        _print_costs(answer)


def _read_messages(path: Path) -> list[dict[str, Any]]:
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", field="--messages") from None
    except ValueError:
        raise InputError(f"{path} is not JSON", field="--messages") from None
    if not isinstance(messages, list):
        raise InputError(f"{path} is not a conversation", field="--messages", expected="a list of messages")
    return messages


def _print_text(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_costs(answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Table

    sys.stdout.write("\n")
    table = Table(title="where the time went", title_justify="left")
    table.add_column("stage")
    table.add_column("ms", justify="right")
    for stage, seconds in answer.seconds.items():
        table.add_row(stage.removesuffix("_s"), f"{seconds * 1000:.1f}")
    console = Console(stderr=True)
    console.print(table)
    for item in answer.media:
        note = "" if item["native"] == item["grid"] else f", from {item['native']} (distortion {item['distortion']})"
        console.print(
            f"{item['kind']}: grid {item['grid']}{note}, {'fixed bucket' if item['fixed'] else 'dynamic graph'}"
        )
    console.print(f"sent {answer.sent_bytes:,} bytes, {answer.usage.get('prompt_tokens', 0)} prompt tokens")
