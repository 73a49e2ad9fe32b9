"""What all commands share: the group, its options, and how an error is shown."""

import functools
import json
import os
import platform
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

import click
from click.shell_completion import CompletionItem

from recray import __version__
from recray.config import known_keys, preset_names
from recray.errors import RecrayError
from recray.progress import Console
from recray.runtime.session import in_job, own_address


class _Failure(click.ClickException):
    """One line, with the error's own exit code: 2, or 3 for storage; click's default is 1."""

    def __init__(self, error: RecrayError) -> None:
        super().__init__(" ".join(str(error).split()))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click declares it on the class


class Commands(click.Group):
    """Show a RecrayError as one line on stderr; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command and translate its RecrayError."""
        try:
            return super().invoke(ctx)
        except RecrayError as error:
            raise _Failure(error) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """A command may have a name of two words beside one of the first word alone."""
        name = " ".join(args[:2])
        if name in self.commands:
            return name, self.commands[name], args[2:]
        return super().resolve_command(ctx, args)


class StoragePath(click.types.StringParamType):
    """A local path or a URI."""

    name = "path"


class SourcePath(StoragePath):
    """A path, or the name of a release."""


PATH, SOURCE = StoragePath(), SourcePath()


def _columns(_context: click.Context, _option: click.Parameter, given: Any) -> tuple[str, ...]:
    """user=customer,item=sku as a setting."""
    if not given:
        return ()
    pairs = [pair.partition("=") for pair in given.split(",")]
    if not all(role.strip() and name.strip() for role, _, name in pairs):
        raise click.BadParameter(f"{given!r}: write user=NAME,item=NAME")
    named = {role.strip(): name.strip() for role, _, name in pairs}
    return (f"data.columns={json.dumps(named)}",)


def default_out(name: str) -> str:
    """The folder of outputs where none is given.

    Raises:
        RecrayError: In a job, whose own folder is thrown away with its cluster.
    """
    base = os.environ.get("RECRAY_OUT")
    if base is None and in_job():
        raise RecrayError("give --out: the working folder of a job does not outlive its cluster")
    return f"{(base or 'recray-out').rstrip('/')}/{name}"


def _starting(names: Iterable[str], begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(begun)]


def _presets(_context: click.Context, _option: click.Parameter, begun: str) -> list[CompletionItem]:
    return _starting(preset_names(), begun)


def _settings(
    _context: click.Context, _option: click.Parameter, begun: str
) -> list[CompletionItem]:
    return _starting([f"{name}=" for name in known_keys()], begun)


def sources(
    _context: click.Context, _argument: click.Parameter, begun: str
) -> list[CompletionItem]:
    """What a SOURCE may be: the sample, a release, or a file."""
    from recray.data.movielens import RELEASES

    return [*_starting(["sample", *RELEASES], begun), CompletionItem(begun, type="file")]


def shared(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options that several commands have: --json always, the others by name."""
    options = {
        "preset": click.option(
            "--preset", help="Recipe to start from.  [default: ranking]", shell_complete=_presets
        ),
        "config": click.option(
            "--config", type=PATH, metavar="FILE", help="YAML with settings by group."
        ),
        "set": click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change one setting.",
            shell_complete=_settings,
        ),
        "workers": click.option(
            "--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Processes."
        ),
        "address": click.option(
            "--address",
            default=own_address,
            show_default="local; in a job, its cluster",
            help="Ray cluster: local, auto, HOST:PORT.",
        ),
        "columns": click.option(
            "--columns",
            callback=_columns,
            metavar="ROLE=NAME,...",
            help="Columns of your own file, such as user=customer,item=sku; by place, from 1, "
            "where there is no header.",
        ),
        "mirror": click.option(
            "--mirror", type=PATH, metavar="URL|FOLDER", help="Where NAME.zip lies instead."
        ),
        "host": click.option(
            "--host", default="127.0.0.1", show_default=True, help="Interface to bind."
        ),
        "port": click.option(
            "--port",
            default=8000,
            show_default=True,
            type=click.IntRange(1, 65535),
            help="HTTP port.",
        ),
        "k": click.option(
            "-k",
            default=10,
            show_default=True,
            type=click.IntRange(min=1),
            help="Length of a list.",
        ),
    }

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_console(*args: Any, as_json: bool, **kwargs: Any) -> Any:
            ui = Console(as_json, click.get_current_context().command_path)
            try:
                return command(ui, *args, **kwargs)
            finally:
                ui.close()

        wrapped: Callable[..., Any] = with_console
        for name in reversed(names):
            wrapped = options[name](wrapped)
        return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(
            wrapped
        )

    return decorate


def _version(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    """Versions from what is installed: nothing is imported for it."""
    if asked and not context.resilient_parsing:
        others = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "torch"))
        click.echo(f"recray {__version__} ({others}, Python {platform.python_version()})")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version, and those of Ray and torch.",
)
def cli() -> None:
    """From raw ratings to a trained, measured and served recommender on any Ray cluster.

    SOURCE is `sample` (generated, no network), a MovieLens release (ml-100k ... ml-32m), or the
    path or URI of a zip, folder or csv file.
    """
