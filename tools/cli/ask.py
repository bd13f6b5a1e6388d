"""`qwen3vl-edge ask`: print the answer as it is streamed, then the time per stage."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3vl_edge.contract.errors import InputError
from qwen3vl_edge.tools.cli.options import (
    BackendOption,
    BundleOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PrecisionOption,
    PreprocessOption,
    ProviderOption,
    SelfTestOption,
    TargetOption,
    ThreadsOption,
    WireOption,
)

if TYPE_CHECKING:
    from qwen3vl_edge.edge_runtime.ask import Answer


def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    bundle: BundleOption,
    server: Annotated[str, typer.Option(help="URL of the server.")] = "http://127.0.0.1:8000",
    image: Annotated[list[str] | None, typer.Option(help="Picture: path, URL or data URI. May repeat.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="Clip: path or URL. May repeat.")] = None,
    messages: Annotated[Path | None, typer.Option(help="A conversation in Qwen's format (JSON), before it.")] = None,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Least pixels of each picture and frame.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Most pixels of each picture and frame.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    provider: ProviderOption = "auto",
    target: TargetOption = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "auto",
    wire_dtype: WireOption = "fp16",
    wire_zstd: Annotated[bool, typer.Option(help="Compress what is sent, without loss.")] = False,
    preprocess: PreprocessOption = "auto",
    threads: ThreadsOption = 0,
    self_test: SelfTestOption = True,
    as_json: JsonOption = False,
) -> None:
    """Ask about pictures and clips: encode here, answer there, and print where the time went."""
    from qwen3vl_edge.contract.wire.request import Sampling
    from qwen3vl_edge.edge_runtime.ask import ask as ask_server
    from qwen3vl_edge.edge_runtime.ask import build_messages
    from qwen3vl_edge.edge_runtime.client.server_credentials import access_from_environment
    from qwen3vl_edge.edge_runtime.edge import EdgeOptions, open_edge
    from qwen3vl_edge.edge_runtime.encoder.protocol import BackendOptions

    backend_options = BackendOptions(
        precision=precision,
        threads=threads,
        model=model,
        provider=provider,
        target=target,
        self_test=self_test,
        device=device,
        dtype=dtype,
    )
    options = EdgeOptions(
        backend=backend,
        backend_options=backend_options,
        wire_dtype=wire_dtype,
        wire_zstd=wire_zstd,
        preprocess=preprocess,
    )
    history = _read_messages(messages) if messages else []
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}  # None is left out
    conversation = history + build_messages(question, image or [], video or [], limits)
    with open_edge(bundle, options) as edge:
        show = (lambda text: None) if as_json else _print_text
        sampling = Sampling(max_new_tokens=max_new_tokens)
        # The server's token and certificates come from the environment: other users see a process's arguments.
        answer = ask_server(edge, server, conversation, sampling, show, access_from_environment())
    if as_json:
        sys.stdout.write(json.dumps(asdict(answer), ensure_ascii=False, indent=1) + "\n")
    else:
        _print_costs(answer)


def _read_messages(path: Path) -> list[dict[str, Any]]:
    from qwen3vl_edge.edge_runtime.inputs.messages_file import read_messages

    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", field="--messages") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON", field="--messages") from None
    if not isinstance(messages, list):
        raise InputError(f"{path} is not a conversation", field="--messages", expected="a list of messages")
    return read_messages(messages, str(path), "--messages")


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
            + f", pixels {item['pixel_limits']} ({item['pixel_policy']})"
            + (f", self-test: {item['self_test']}" if "self_test" in item else "")
        )
    console.print(f"sent {answer.sent_bytes:,} bytes, {answer.usage.get('prompt_tokens', 0)} prompt tokens")
