"""The `llmkit` command: a click group whose commands are imported only when they run."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Any, Final

import click

from llmkit import __version__
from llmkit.errors import LlmkitError

# command -> (module, attribute, one line for --help), so that `llmkit --help` imports no command.
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "convert": ("llmkit.commands.convert", "convert", "Convert a checkpoint to a GGUF file, quantised on the way."),
    "inspect": ("llmkit.commands.inspect", "inspect", "Show what a model file or folder holds; reads headers only."),
    "chat": ("llmkit.commands.chat", "chat", "Talk to a model."),
    "generate": ("llmkit.commands.generate", "generate", "Continue a text."),
    "models": ("llmkit.commands.models", "models", "List the models on this machine."),
}


class LazyGroup(click.Group):
    """Lists commands from a table and imports a command when it is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), attribute)
        if not any(option.name == "quiet" for option in command.params):
            command.params += _common_options()  # `llmkit convert -q` means the same as `llmkit -q convert`
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


def _set(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(dict)[param.name] = True


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_set, help="No progress, no notes."),
        click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set, help="Show an error's traceback."),
    ]


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="llmkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notes on stderr.")
@click.pass_context
def cli(ctx: click.Context, debug: bool, quiet: bool) -> None:
    """Convert Hugging Face checkpoints to quantised GGUF files, and run them."""
    ctx.obj = {"debug": debug, "quiet": quiet}


def main(args: list[str] | None = None) -> None:
    """Entry point: exit status 0, 1 (the work failed; one message on stderr), 2 (usage) or 130 (interrupted)."""
    # Being asked to end unwinds like Ctrl-C does, so that an unfinished output is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = sys.argv[1:] if args is None else args
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit status."""
    debug = "--debug" in arguments
    try:
        result: Any = cli.main(arguments, prog_name="llmkit", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except LlmkitError as error:
        if debug:
            raise
        click.echo(f"llmkit: {error}", err=True)
        return 1
    except (click.Abort, KeyboardInterrupt):
        click.echo("llmkit: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`llmkit ... | head`); nothing is left to say, nor a place to say it.
        sys.stderr.close()
        return 141
    except (OSError, MemoryError) as error:
        if debug:
            raise
        click.echo(f"llmkit: {error or type(error).__name__}", err=True)
        return 1
