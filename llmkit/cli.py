"""The `llmkit` command: a click group whose commands are imported only when they run."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import Any, Final

import click

from llmkit import __version__
from llmkit.errors import LlmkitError
from llmkit.progress import say

# command -> (module, attribute, one line for --help), so that `llmkit --help` imports no command.
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "convert": ("llmkit.commands.convert", "convert", "Convert a checkpoint to a GGUF file, quantised on the way."),
    "quantize": ("llmkit.commands.quantize", "quantize", "Quantise a GGUF file."),
    "imatrix": ("llmkit.commands.imatrix", "imatrix", "Compute an importance matrix from a text, for quantising."),
    "inspect": ("llmkit.commands.inspect", "inspect", "Show what a model file or folder holds; reads headers only."),
    "chat": ("llmkit.commands.chat", "chat", "Talk to a model."),
    "generate": ("llmkit.commands.generate", "generate", "Continue a text."),
    "embed": ("llmkit.commands.embed", "embed", "Turn texts into vectors with an embedding model."),
    "eval": ("llmkit.commands.eval", "command", "Measure how well models predict a text, and how far they are apart."),
    "bench": ("llmkit.commands.bench", "command", "Measure how fast models are, and what memory they take."),
    "recommend": ("llmkit.commands.recommend", "command", "Say which format of a model to take, and why."),
    "formats": ("llmkit.commands.formats", "command", "Compare deployment formats, or find the one to take."),
    "compare": ("llmkit.commands.compare", "command", "Compare models: quality, size, speed, answers; with a report."),
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
        ctx.obj[param.name] = True


def _common_options() -> list[click.Parameter]:
    """What may stand before a command and after it."""
    return [
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_set, help="No progress, no notes."),
        click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set, help="Show an error's traceback."),
    ]


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="llmkit")
def cli() -> None:
    """Convert Hugging Face checkpoints to quantised GGUF files, and run them."""


cli.params += _common_options()


def main(args: list[str] | None = None) -> None:
    """Entry point: exits with 0, 1 (the work failed; one message on stderr), 2 (usage) or 130 (interrupted)."""
    # Being asked to end unwinds like Ctrl-C does, so that an unfinished output is removed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    sys.exit(run(sys.argv[1:] if args is None else args))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit status."""
    common = {"debug": False, "quiet": False}
    try:
        result: Any = cli.main(arguments, prog_name="llmkit", standalone_mode=False, obj=common)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("llmkit: interrupted")
        return 130
    except Exception as error:
        if common["debug"]:
            raise
        say(f"llmkit: {_message(error)}")
        return 1


def _message(error: Exception) -> str:
    if isinstance(error, LlmkitError):
        return str(error)
    if isinstance(error, OSError | MemoryError):
        return str(error) or type(error).__name__
    return f"internal error, please report it: {type(error).__name__}: {error} (--debug shows where)"
