"""What every command of the command line shares: settings, where it prints, JSON, exit codes."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from qedge.errors import QEdgeError, Refused

if TYPE_CHECKING:
    from rich.console import Console

    from qedge.config import Settings

Facts = dict[str, Any]


class Context:
    """What every command knows: settings, where to print, and whether as JSON."""

    def __init__(self, home: str | None, address: str | None, config: str | None, as_json: bool) -> None:
        from rich.console import Console

        from qedge.config import load

        self.as_json = as_json
        self.listening = False  # whether the command was told where to listen
        self.settings: Settings = load(config, home=home, address=address)
        self.console: Console = Console(stderr=as_json)


def command(group: click.Group, name: str | None = None) -> Callable[[Callable[..., Facts]], click.Command]:
    """A command with the common options; what it returns is the JSON object, what it prints is for people."""

    def register(function: Callable[..., Facts]) -> click.Command:
        @functools.wraps(function)
        def run(home: str | None, address: str | None, config: str | None, as_json: bool, **arguments: object) -> None:
            try:
                answer = function(Context(home, address, config, as_json), **arguments)
            except QEdgeError as error:
                fail(error, as_json)
            else:
                if as_json:
                    click.echo(json.dumps(answer, default=str))

        options = (
            click.option("--home", metavar="DIR", help="Where all state lives (QEDGE_HOME; default .qedge)."),
            click.option("--address", metavar="HOST:PORT", help="Ray cluster to use (RAY_ADDRESS)."),
            click.option("--config", metavar="FILE", help="YAML file of settings (QEDGE_CONFIG)."),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line."),
        )
        wrapped: Callable[..., None] = run
        for option in reversed(options):
            wrapped = option(wrapped)
        return group.command(name or function.__name__.rstrip("_"))(wrapped)

    return register


def fail(error: QEdgeError, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": error.as_dict()}, default=str))
    click.echo(f"{'refused' if isinstance(error, Refused) else 'failed'} [{error.code}]: {error.message}", err=True)
    sys.exit(error.exit_code)


def listening(function: Callable[..., Facts]) -> Callable[..., Facts]:
    """The options that say where the endpoint listens; they reach the function through the settings."""

    @functools.wraps(function)
    def run(context: Context, host: str | None, port: int | None, **arguments: object) -> Facts:
        serve = context.settings.serve
        context.listening = host is not None or port is not None
        wanted = {"host": host or serve.host, "port": port or serve.port}
        context.settings = context.settings.model_copy(update={"serve": serve.model_copy(update=wanted)})
        return function(context, **arguments)

    named = click.option("--host", help="Address the endpoint listens on (default 127.0.0.1).")(run)
    return click.option("--port", type=click.IntRange(1, 65535), help="Port the endpoint listens on (default 8000).")(named)
