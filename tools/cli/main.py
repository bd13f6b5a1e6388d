"""`qwen3vl-edge`: all commands; each is one file here, and imports its libraries only when it runs."""

from __future__ import annotations

import sys

import typer

from qwen3vl_edge.tools.cli.ask import ask
from qwen3vl_edge.tools.cli.bench import bench
from qwen3vl_edge.tools.cli.build import build
from qwen3vl_edge.tools.cli.calibrate import calibrate
from qwen3vl_edge.tools.cli.demo import demo
from qwen3vl_edge.tools.cli.dump import dump
from qwen3vl_edge.tools.cli.edge import edge
from qwen3vl_edge.tools.cli.export import export
from qwen3vl_edge.tools.cli.fit_basis import fit_basis
from qwen3vl_edge.tools.cli.inspect import inspect
from qwen3vl_edge.tools.cli.parity import parity
from qwen3vl_edge.tools.cli.plan import plan
from qwen3vl_edge.tools.cli.server import server
from qwen3vl_edge.tools.cli.server_token import server_token

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Qwen3-VL on two machines: the vision encoder on the device, the language model on a server.",
)
app.command()(export)
app.command()(build)
app.command()(calibrate)
app.command()(ask)
app.command()(server)
app.command()(server_token)
app.command()(parity)
app.command()(fit_basis)
app.command()(plan)
# What follows NAME is the bench's own, `--help` too.
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(bench)
app.command()(dump)
app.command()(inspect)
app.command()(demo)

edge_app = typer.Typer(invoke_without_command=True)
edge_app.callback()(edge)
edge_app.command()(dump)
app.add_typer(edge_app, name="edge")


def main() -> None:
    """Entry point: errors of the contract become one line on stderr and exit code 2."""
    from qwen3vl_edge.contract.errors import ContractError

    try:
        app()
    except ContractError as error:
        sys.stderr.write(f"qwen3vl-edge: {error}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write("qwen3vl-edge: interrupted\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
