"""What all commands share: the group, its options, how an error is shown, and the entry point.

Modules that load torch or Ray are imported by the commands that need them, so that `recray --help`
is immediate.
"""

import functools
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from recray import __version__
from recray.cli.results import ShellCompletion
from recray.config import Settings, known_keys, load_settings, preset_names
from recray.errors import RecrayError
from recray.progress import Console
from recray.runtime.ray_start import in_job
from recray.runtime.session import own_address
from recray.runtime.worker_range import WorkerRange

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
COMPLETION_FILES = {
    "bash": 'eval "$(recray completion bash)"  # into ~/.bashrc',
    "zsh": 'eval "$(recray completion zsh)"  # into ~/.zshrc',
    "fish": "recray completion fish > ~/.config/fish/completions/recray.fish",
}
"""Where each shell reads the script that completes commands."""


class _Failure(click.ClickException):
    """One line, with the error's own exit code: 2, or 3 for storage; click's default is 1."""

    def __init__(self, error: RecrayError) -> None:
        super().__init__(" ".join(str(error).split()))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click declares it on the class


class Commands(click.Group):
    """Show a RecrayError as one line on stderr; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command and translate its RecrayError; any other error is a bug."""
        try:
            return super().invoke(ctx)
        except RecrayError as error:
            raise _Failure(error) from error
        except EOFError as error:  # click would take it for Ctrl-D at a prompt, and say "stopped"
            raise RuntimeError(f"the end of a file or connection: {error}") from error

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


class WorkersType(click.ParamType[WorkerRange]):
    """A number of workers, or a range of them."""

    name = "workers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> WorkerRange:
        """Read it; a RecrayError says what it may be."""
        return WorkerRange.of(value)


PATH, SOURCE, WORKERS = StoragePath(), SourcePath(), WorkersType()


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


def number(
    *names: str,
    default: float,
    range: click.IntRange | click.FloatRange,
    help: str,
    metavar: str | None = None,
) -> Decorator:
    """An option that takes a number in a range, and shows its default."""
    return click.option(
        *names, default=default, show_default=True, type=range, metavar=metavar, help=help
    )


_SHARED: dict[str, Decorator] = {
    "final_fit": click.option(
        "--final-fit/--no-final-fit",
        default=True,
        show_default=True,
        help="Whether what is served is fitted again on all ratings, those of test too, after it "
        "was measured.",
    ),
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
    "workers": number("--workers", default=1, range=click.IntRange(min=1), help="Processes."),
    "worker_range": click.option(
        "--workers",
        default="1",
        show_default=True,
        type=WORKERS,
        metavar="N|N..M",
        help="Processes; N..M: as many as a cluster has room for, while nodes come and go.",
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
    "port": number("--port", default=8000, range=click.IntRange(1, 65535), help="HTTP port."),
    "k": click.option(
        "-k",
        type=click.IntRange(min=1),
        show_default="10, or the catalogue if that is smaller",
        help="Length of a list.",
    ),
}
_RECIPE = ("preset", "config", "set")


@dataclass(frozen=True)
class Recipe:
    """What the options --preset, --config, --set and --columns say of the settings."""

    preset: str | None = None
    config: str | None = None
    overrides: tuple[str, ...] = ()

    def settings(self) -> Settings:
        """Resolve and check the settings.

        Raises:
            RecrayError: The preset or a key is unknown, or a value is not allowed.
        """
        return load_settings(self.preset, self.config, self.overrides)

    def refuse_groups(self, groups: tuple[str, ...], command: str) -> None:
        """Refuse settings that another command takes, which would be ignored here.

        Raises:
            RecrayError: One of them is given.
        """
        for text in self.overrides:
            if text.split(".")[0].strip() in groups:
                raise RecrayError(f"--set {text}: this is decided by `{command}`; give it there")


def options(*decorators: Decorator) -> Decorator:
    """Join options to one decorator; the help shows them in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda inner, option: option(inner), decorators[::-1], command)

    return decorate


def shared(*names: str) -> Decorator:
    """Options that several commands have: --json always, the others by name.

    The command gets a Console first. `recipe` stands for --preset, --config and --set; the command
    gets them, and --columns where it has that, as one Recipe.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_console(*args: Any, as_json: bool, **kwargs: Any) -> Any:
            if "recipe" in names:
                overrides = kwargs.pop("overrides") + kwargs.pop("columns", ())
                kwargs["recipe"] = Recipe(kwargs.pop("preset"), kwargs.pop("config"), overrides)
            ui = Console(as_json, click.get_current_context().command_path)
            try:
                return command(ui, *args, **kwargs)
            finally:
                ui.close()

        single = [one for name in names for one in (_RECIPE if name == "recipe" else (name,))]
        as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
        return options(as_json, *(_SHARED[name] for name in single))(with_console)

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


@cli.command()
@click.argument("shell", type=click.Choice(list(COMPLETION_FILES)))
@shared()
def completion(ui: Console, shell: str) -> None:
    """Print what makes SHELL complete commands, options, presets, settings and releases.

    \b
    Example:
        eval "$(recray completion bash)"     # one line in ~/.bashrc; zsh in ~/.zshrc likewise
        recray completion fish > ~/.config/fish/completions/recray.fish
    """
    made = get_completion_class(shell)
    if made is None:
        raise ValueError(f"click knows no shell {shell}")
    script = made(cli, {}, "recray", "_RECRAY_COMPLETE").source()
    result = ShellCompletion(shell=shell, script=script, install=COMPLETION_FILES[shell])
    ui.result(result, script)


def wait_for_stop(ui: Console, url: str) -> None:
    """Sleep until a signal ends the process."""
    ui.log(f"serving on {url}; Ctrl-C stops it")
    signal.pause()


def main(command: str | None = None, **defaults: Any) -> None:
    """Entry point; stopped by Ctrl-C it exits with 130.

    Args:
        command: What to run with the arguments of the process; None: the first of them says.
        **defaults: Other defaults for the options of that command.
    """
    arguments = sys.argv[1:] if command is None else [command, *sys.argv[1:]]
    known = {} if command is None else {command: defaults}
    try:
        status = cli.main(arguments, "recray", standalone_mode=False, default_map=known)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `recray ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    sys.exit(status if isinstance(status, int) else 0)
