"""`llmkit chat`: talk to a model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

import click

from llmkit.chat import Chat, speed
from llmkit.commands._generation import input_lines, lenient_output, load_model, notes, read_prompt, sampling_options
from llmkit.conversation import Conversation
from llmkit.protocols import SamplingOptions, Session


@click.command()
@click.argument("model")
@click.option(
    "-p",
    "--prompt",
    help="Answer this and exit. Standard input is not read then, unless this is `-`: it is the prompt.",
)
@click.option("--system", help="System prompt.")
@click.option("--template", metavar="NAME|FILE", help="Use this chat template of the model, or a Jinja file.")
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Most tokens of an answer.  [default: until the model ends it or the context is full]",
)
@sampling_options
@click.pass_context
def chat(
    ctx: click.Context,
    model: str,
    prompt: str | None,
    system: str | None,
    template: str | None,
    sampling: SamplingOptions,
    n_context: int | None,
    n_threads: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Talk to MODEL by its own chat template.

    MODEL is a GGUF file, a folder with exactly one, or a word that matches one here.

    On a terminal: type a message, read the answer; Ctrl-C stops an answer, /help lists commands. With -p: one answer.
    With lines piped in: each line is a message or a command of the same conversation, and an error ends it. Only
    answers go to standard output.
    """
    quiet = ctx.obj["quiet"]
    note = notes(quiet)
    question = None
    if prompt is not None:
        question = read_prompt(prompt).strip()
        if not question:
            raise click.UsageError("the prompt is empty")
    lenient_output()
    interactive = question is None and sys.stdin.isatty()
    conversation = Conversation()
    conversation.system = system
    with load_model(model, note, n_context=n_context, device=device, n_threads=n_threads, template=template) as session:
        loop = Chat(
            session,
            sampling,
            out=sys.stdout,
            note=notes(quiet=False) if interactive else note,
            reply=notes(quiet=False),
            conversation=conversation,
            interactive=interactive,
            as_json=as_json,
            on_terminal=sys.stdout.isatty(),
        )
        if question is not None:
            loop.ask(question)
        elif interactive:
            _banner(session, note)
            with suppress(KeyboardInterrupt):  # twice at the prompt
                loop.run(_line_editor())
            note("")
        else:
            loop.run(_line_reader())
        if loop.totals.n_answers:
            note(speed(loop.totals.sum, loop.totals.n_answers))


def _banner(session: Session, note: Callable[[str], None]) -> None:
    info = session.info
    note(
        f"{info.name}: {info.n_params / 1e6:,.1f} M parameters, context {info.n_context} tokens, "
        f"{info.n_threads} threads. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves."
    )


def _line_editor() -> Callable[[], str]:
    """Lines typed at a prompt, with history and editing where readline is available."""
    with suppress(ImportError):
        import readline  # noqa: F401  (input() uses it)
    prompt = "> "

    def read_line() -> str:
        if sys.stdout.isatty():
            return input(prompt)
        click.echo(prompt, err=True, nl=False)  # standard output is for answers
        return input()

    return read_line


def _line_reader() -> Callable[[], str]:
    lines = input_lines()

    def read_line() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    return read_line
