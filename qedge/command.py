"""What every command of the command line shares: settings, where it prints, JSON, exit codes, how it ends when it cannot go on."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qedge.errors import HomeUnusable, InvalidCommand, QEdgeError, Refused

if TYPE_CHECKING:
    from rich.console import Console

    from qedge.config import Settings

Facts = dict[str, Any]
INTERRUPTED = 130  # as a shell counts it: 128 and the number of SIGINT


class Commands(click.Group):
    """The group at the root. What click itself refuses, and Ctrl-C, end as every other error does, with `--json` too."""

    def main(self, *args: Any, **named: Any) -> Any:
        """Run the command that was asked for, and leave the process. Takes what `click.Group.main` takes."""
        given: Sequence[str] | None = args[0] if args else named.get("args")
        as_json = "--json" in (sys.argv[1:] if given is None else given)
        try:
            code = super().main(*args, **{**named, "standalone_mode": False})
        except click.ClickException as error:
            error.show()
            refused = InvalidCommand(error.format_message())
            _tell(refused.as_dict(), as_json)
            sys.exit(refused.exit_code)
        except click.Abort:
            click.echo("interrupted", err=True)
            _tell({"code": "interrupted", "message": "interrupted"}, as_json)
            sys.exit(INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)


class Context:
    """What every command knows: settings, where to print, and whether as JSON.

    given_address, given_host, given_port: what the command line itself said, None where settings decide.
    """

    def __init__(self, home: str | None, address: str | None, config: str | None, as_json: bool) -> None:
        """Raises: InvalidConfig: a setting. HomeUnusable: the home, or a folder on the way to it, is something else."""
        from rich.console import Console

        from qedge.config import load

        self.as_json = as_json
        self.given_address = address
        self.given_host: str | None = None
        self.given_port: int | None = None
        self.settings: Settings = load(config, home=home, address=address)
        self.console: Console = Console(stderr=as_json)
        _refuse_no_folder(self.settings.home)


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
    """Say what went wrong, on standard error and as JSON, and leave with its exit code."""
    _tell(error.as_dict(), as_json)
    click.echo(f"{'refused' if isinstance(error, Refused) else 'failed'} [{error.code}]: {error.message}", err=True)
    sys.exit(error.exit_code)


def taking_model(function: Callable[..., Facts]) -> Callable[..., Facts]:
    """The argument MODEL, and how it may be given."""
    function.__doc__ = f"{function.__doc__}\n\n    MODEL: NAME, NAME@alias or NAME/version."
    return click.argument("model")(function)


def listening(function: Callable[..., Facts]) -> Callable[..., Facts]:
    """The options that say where the endpoint listens; they reach the function through the settings."""

    @functools.wraps(function)
    def run(context: Context, host: str | None, port: int | None, **arguments: object) -> Facts:
        serve = context.settings.serve
        context.given_host, context.given_port = host, port
        wanted = {"host": host or serve.host, "port": port or serve.port}
        context.settings = context.settings.model_copy(update={"serve": serve.model_copy(update=wanted)})
        return function(context, **arguments)

    named = click.option("--host", help="Address the endpoint listens on (default 127.0.0.1).")(run)
    return click.option("--port", type=click.IntRange(1, 65535), help="Port the endpoint listens on (default 8000).")(named)


def how_to_go_on(run: str, home: Path, command: str = "train") -> str:
    """What to type to go on with a run that was interrupted."""
    return shlex.join(["qedge", command, "--resume", run, "--home", str(home)])


def _tell(error: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": error}, default=str))


def _refuse_no_folder(home: Path) -> None:
    from qedge.storage import storage_errors

    with storage_errors(home):
        place = next(path for path in (home, *home.parents) if path.exists())
    if not place.is_dir():
        what = "is" if place == home else f"cannot be in {place}, which is"
        raise HomeUnusable(f"QEDGE_HOME {home} {what} no folder; give one that is, or that can be made", home=str(home))


def rates(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, object], ...]:
    """Each "depolarizing=0.01" as a name and a number, "readout=0.02,0.05" and "readout=0.02" as a name and two."""
    found: list[tuple[str, object]] = []
    for one in given:
        kind, _, rate = one.partition("=")
        try:
            rates = [float(part) for part in rate.split(",")]
            found.append((kind, (rates * 2)[:2] if kind == "readout" and len(rates) < 3 else rates[0] if len(rates) == 1 else rates))
        except ValueError:
            raise click.BadParameter(f"'{one}' is not of the form depolarizing=0.01") from None
    return tuple(found)
