"""The chat: turns user lines into commands and questions, streams answers, survives Ctrl-C.

It knows nothing of the terminal: lines come from a function, answers go to a text stream, notes to a function.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Final, TextIO

from llmkit.conversation import Conversation
from llmkit.errors import LlmkitError
from llmkit.formats.files import user_path
from llmkit.protocols import GenerationStats, SamplingOptions, Session
from llmkit.runtimes.requests import PromptTooLongError

COMMANDS: Final[dict[str, str]] = {
    "/exit": "leave (as Ctrl-D does)",
    "/clear": "forget the conversation; the system prompt stays",
    "/regen": "answer the last question again",
    "/system": "show the system prompt; /system TEXT sets it, /system - removes it",
    "/save": "/save FILE writes the conversation as JSON",
    "/load": "/load FILE continues a saved conversation",
    "/stats": "speed, tokens and how full the context is",
    "/help": "this list",
}
# A model's words must not steer the terminal (move the cursor, set the title): C0 and C1 controls are dropped.
_CONTROLS: Final = {code: None for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\n\t"}


@dataclass(slots=True)
class Totals:
    """Tokens and seconds of all answers so far."""

    n_answers: int = 0
    last: GenerationStats = field(default_factory=GenerationStats)
    sum: GenerationStats = field(default_factory=GenerationStats)

    def add(self, stats: GenerationStats) -> None:
        self.n_answers += 1
        self.last = replace(stats)
        for name in ("n_prompt", "n_reused", "n_generated", "prompt_seconds", "generate_seconds"):
            setattr(self.sum, name, getattr(self.sum, name) + getattr(stats, name))


class Chat:
    """One conversation with one session.

    `interactive` chats go on after an error or Ctrl-C; others (-p, piped lines) let both end the program. `as_json`
    prints one JSON object for each answer instead of streaming its text. `on_terminal` drops control characters.
    `note` gets remarks, which may be muted; `reply` what commands answer, and the errors of interactive chats.
    """

    def __init__(
        self,
        session: Session,
        options: SamplingOptions,
        *,
        out: TextIO,
        note: Callable[[str], None],
        reply: Callable[[str], None] | None = None,
        conversation: Conversation | None = None,
        interactive: bool = False,
        as_json: bool = False,
        on_terminal: bool = False,
    ) -> None:
        self.session = session
        self.options = options
        self.conversation = conversation or Conversation()
        self.totals = Totals()
        self._here = Totals()  # those of this conversation
        self._out = out
        self._note = note
        self._reply = reply or note
        self._interactive = interactive
        self._as_json = as_json
        self._on_terminal = on_terminal
        self._n_again = 0  # how often the last question was answered again

    def run(self, read_line: Callable[[], str]) -> None:
        """Take lines until `/exit`, the end of the input, or Ctrl-C twice at the prompt.

        `read_line` raises EOFError at the end. A line that ends in a backslash goes on in the next one.
        """
        warned = False
        while True:
            try:
                line = self._whole_line(read_line)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self._interactive or warned:
                    raise
                warned = True
                self._note("\nCtrl-C again leaves, as do Ctrl-D and /exit.")
                continue
            warned = False
            try:
                if not self.take(line):
                    return
            except KeyboardInterrupt:  # pressed again while the first one was dealt with
                if not self._interactive:
                    raise

    @staticmethod
    def _whole_line(read_line: Callable[[], str]) -> str:
        lines = [read_line()]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            try:
                lines.append(read_line())
            except EOFError:
                break
        return "\n".join(lines)

    def take(self, line: str) -> bool:
        """Obey a command or answer a question; False if it asks to leave."""
        text = line.strip()
        if not text:
            return True
        try:
            if text.startswith("/") and not text.startswith("//"):
                return self._obey(text)
            self.ask(text.removeprefix("/") if text.startswith("//") else text)
        except (LlmkitError, OSError) as error:
            if not self._interactive or isinstance(error, BrokenPipeError):
                raise
            self._reply(f"llmkit: {error}")
            if isinstance(error, PromptTooLongError) and self.conversation.last_is("assistant"):
                self._reply(
                    "(with this message the conversation has grown longer than the context: /clear starts anew, "
                    "/save FILE keeps it)"
                )
        return True

    def ask(self, text: str) -> str:
        """Answer `text`; a question that gets no answer at all is taken back."""
        self.conversation.add("user", text)
        self._n_again = 0
        try:
            return self._answer()
        finally:
            if self.conversation.last_is("user"):
                self.conversation.messages.pop()

    def _answer(self) -> str:
        options = self.options
        if options.seed is not None:
            options = replace(options, seed=(options.seed + self._n_again) % 0xFFFFFFFF)
        parts: list[str] = []
        stopped = False
        before = self.session.stats
        try:
            for part in self.session.chat(self.conversation.messages, options):
                parts.append(part)
                if not self._as_json:
                    self._write(part)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            stopped = True
        answer = "".join(parts)
        if answer:
            self.conversation.add("assistant", answer)
        stats = self.session.stats
        if stats is not before:  # else it was stopped before it began
            self.totals.add(stats)
            self._here.add(stats)
        if self._as_json:
            self._write(json.dumps({"answer": answer, **asdict(stats)}, ensure_ascii=False) + "\n")
        elif not answer.endswith("\n"):
            self._write("\n")
        self._explain(stats, stopped, answer)
        return answer

    def _explain(self, stats: GenerationStats, stopped: bool, answer: str) -> None:
        if stopped:
            self._note("(stopped; the answer so far is kept)" if answer else "(stopped)")
        elif stats.stop_reason == "context":
            self._note(
                f"(the context of {self.session.info.n_context} tokens is full: --context gives more room"
                + (", /clear starts anew)" if self._interactive else ")")
            )
        elif stats.stop_reason == "length" and self._interactive:
            self._note(f"(stopped after {stats.n_generated} tokens, as --max-tokens says)")

    def _write(self, text: str) -> None:
        self._out.write(text.translate(_CONTROLS) if self._on_terminal else text)
        self._out.flush()

    def _obey(self, text: str) -> bool:
        command, _, argument = text.partition(" ")
        argument = argument.strip()
        match command:
            case "/exit":
                return False
            case "/clear":
                self.conversation.clear()
                self._here = Totals()
                self._reply("(the conversation is forgotten)")
            case "/regen":
                self._again()
            case "/system":
                self._system(argument)
            case "/save" | "/load" if not argument:
                self._reply(f"{command} needs a file name: {command} FILE")
            case "/save":
                self.conversation.save(user_path(argument), model=self.session.info.name)
                self._reply(f"(saved {len(self.conversation.messages)} messages to {argument})")
            case "/load":
                self.conversation = Conversation.load(user_path(argument))
                self._here = Totals()
                self._reply(f"(loaded {len(self.conversation.messages)} messages from {argument})")
            case "/stats":
                self._stats()
            case "/help":
                width = max(map(len, COMMANDS))
                for name, what in COMMANDS.items():
                    self._reply(f"  {name.ljust(width)}  {what}")
                self._reply("  A line ending in \\ goes on in the next; //TEXT sends /TEXT; Ctrl-C stops an answer.")
            case _:
                self._reply(
                    f"There is no command {command}; /help lists them. To send the line as it is, write /{text}"
                )
        return True

    def _again(self) -> None:
        messages = self.conversation.messages
        if not self.conversation.last_is("assistant"):
            self._reply("There is no answer yet to give again.")
            return
        if self.options.temperature == 0:
            self._note("(with --temp 0 the answer will be the same)")
        previous = messages.pop()
        self._n_again += 1
        try:
            self._answer()
        finally:
            if not self.conversation.last_is("assistant"):
                messages.append(previous)

    def _system(self, argument: str) -> None:
        if argument:
            self.conversation.system = None if argument == "-" else argument
            self._reply("(the system prompt is " + ("removed)" if argument == "-" else "set)"))
        elif self.conversation.system is None:
            self._reply("There is no system prompt; the model's template may put in its own.")
        else:
            self._reply(self.conversation.system)

    def _stats(self) -> None:
        info, totals = self.session.info, self._here
        last = totals.last
        self._reply(f"{info.name}, {info.engine}, {info.n_threads} threads, loaded in {info.load_seconds:.1f} s")
        if totals.n_answers == 0:
            loaded = self.conversation.last_is("assistant")
            self._reply("No answer since the conversation was loaded." if loaded else "No answer yet.")
            return
        used = min(last.n_prompt + last.n_generated, info.n_context)  # the last token needs no position of its own
        self._reply(f"context: {used} of {info.n_context} tokens used, {len(self.conversation.messages)} messages")
        self._reply(f"last answer: {speed(last)}")
        self._reply(f"{totals.n_answers} answers: {speed(totals.sum, totals.n_answers)}")


def speed(stats: GenerationStats, n_answers: int = 1) -> str:
    """Counts and speeds on one line.

    The first token of an answer comes out of the prompt's pass and is no decoding step of its own, so tokens/s counts
    one less for each of the `n_answers`.
    """
    processed = stats.n_prompt - stats.n_reused
    reused = f" of {stats.n_prompt}, the others still in the KV cache," if stats.n_reused else ""
    steps = max(stats.n_generated - n_answers, 0)
    return (
        f"prompt {processed} tokens{reused}{_rate(processed, stats.prompt_seconds)}; "
        f"generated {stats.n_generated} tokens{_rate(steps, stats.generate_seconds)}"
    )


def _rate(count: int, seconds: float) -> str:
    return f" at {count / seconds:.1f} tokens/s" if count and seconds > 0 else ""
