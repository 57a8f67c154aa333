"""The chat loop, driven with a session that has no model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmkit.chat import COMMANDS, Chat, speed
from llmkit.errors import EngineError, FormatError, OutputError, TemplateError
from llmkit.protocols import GenerationStats, Message, SamplingOptions
from llmkit.runtimes.fake import FakeSession

OPTIONS = SamplingOptions(seed=7)


class Desk:
    """A chat with what it wrote."""

    def __init__(self, session: FakeSession | None = None, options: SamplingOptions = OPTIONS, **settings: Any) -> None:
        self.out = io.StringIO()
        self.notes: list[str] = []
        self.session = session or FakeSession()
        settings.setdefault("interactive", True)
        self.chat = Chat(self.session, options, out=self.out, note=self.notes.append, **settings)

    def type(self, *lines: str) -> Desk:
        """Run the loop on these lines, then the end of the input."""
        self.chat.run(feeder(*lines))
        return self

    @property
    def roles(self) -> list[str]:
        return [message["role"] for message in self.chat.conversation.messages]

    @property
    def last(self) -> str:
        return self.chat.conversation.messages[-1]["content"]


def feeder(*lines: str | type[BaseException]) -> Callable[[], str]:
    """A `read_line` that gives these lines, or raises what stands in their place."""
    waiting = iter(lines)

    def read_line() -> str:
        line = next(waiting, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read_line


def test_turns_see_the_whole_conversation() -> None:
    desk = Desk().type("one", "  two  ", "", "   ")
    assert desk.out.getvalue() == "You said: one\nYou said: two\n"
    assert desk.roles == ["user", "assistant", "user", "assistant"]
    messages, options = desk.session.calls[1]
    assert [message["content"] for message in messages] == ["one", "You said: one", "two"]
    assert options == OPTIONS
    assert desk.session.stats.n_reused > 0


def test_answers_are_streamed() -> None:
    flushed: list[str] = []

    class Out(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    out = Out()
    Chat(FakeSession(), OPTIONS, out=out, note=print).ask("abc")
    assert flushed[:3] == ["Y", "Yo", "You"]


def test_exit_ends_the_loop() -> None:
    desk = Desk().type("one", "/exit", "two")
    assert desk.roles == ["user", "assistant"]


def test_backslash_joins_lines() -> None:
    assert Desk().type("one \\", "two\\", "three").chat.conversation.messages[0]["content"] == "one \ntwo\nthree"


def test_input_that_ends_in_a_backslash() -> None:
    assert Desk().type("one\\").chat.conversation.messages[0]["content"] == "one"


def test_clear_keeps_the_system_prompt() -> None:
    desk = Desk().type("/system Be brief.", "one", "/clear")
    assert desk.chat.conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_system_prompt_is_set_shown_and_removed() -> None:
    desk = Desk().type("/system", "/system Be brief.", "/system", "one", "/system -", "/system")
    assert desk.notes == [
        "There is no system prompt; the model's template may put in its own.",
        "(the system prompt is set)",
        "Be brief.",
        "(the system prompt is removed)",
        "There is no system prompt; the model's template may put in its own.",
    ]
    assert desk.session.calls[0][0][0] == {"role": "system", "content": "Be brief."}
    assert desk.roles == ["user", "assistant"]


def test_regen_answers_the_last_question_again_with_another_seed() -> None:
    desk = Desk().type("one", "/regen", "/regen", "two")
    assert [options.seed for _, options in desk.session.calls] == [7, 8, 9, 7]
    assert desk.session.calls[0][0] == desk.session.calls[1][0] == desk.session.calls[2][0]
    assert desk.roles == ["user", "assistant", "user", "assistant"]


def test_regen_without_an_answer() -> None:
    desk = Desk().type("/regen")
    assert desk.notes == ["There is no answer yet to give again."]
    assert desk.session.calls == []


def test_regen_that_fails_keeps_the_previous_answer() -> None:
    session = FakeSession()
    desk = Desk(session).type("one")
    session.chat = refuse  # type: ignore[method-assign]
    desk.type("/regen")
    assert desk.notes == ["llmkit: no"]
    assert desk.last == "You said: one"


def refuse(_messages: Sequence[Message], _options: SamplingOptions | None = None) -> Iterator[str]:
    raise TemplateError("no")


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "my chat.json"
    desk = Desk().type("one", f"/save {path}")
    assert desk.notes == [f"(saved 2 messages to {path})"]
    other = Desk().type(f"/load {path}", "two")
    assert other.roles == ["user", "assistant", "user", "assistant"]
    assert other.session.calls[0][0][1]["content"] == "You said: one"
    assert desk.type("/save", "/load").notes[1:] == [
        "/save needs a file name: /save FILE",
        "/load needs a file name: /load FILE",
    ]


def test_failed_load_changes_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    desk = Desk().type("one", f"/load {bad}", f"/load {tmp_path / 'none.json'}", f"/save {bad}", "two")
    assert len(desk.notes) == 3
    assert all(note.startswith("llmkit: ") for note in desk.notes)
    assert desk.roles == ["user", "assistant", "user", "assistant"]
    assert bad.read_text() == "{}"


def test_unknown_commands_are_named_and_not_sent() -> None:
    desk = Desk().type("/foo bar", "/")
    assert "There is no command /foo; /help lists them." in desk.notes[0]
    assert "//foo bar" in desk.notes[0]
    assert desk.session.calls == []
    assert desk.type("//foo bar").session.calls[0][0][0]["content"] == "/foo bar"


def test_help_lists_every_command() -> None:
    text = "\n".join(Desk().type("/help").notes)
    assert all(f"{name} " in text for name in COMMANDS)


def test_stats() -> None:
    desk = Desk().type("/stats", "one", "two", "/stats")
    assert desk.notes[1] == "No answer yet."
    assert desk.notes[3].startswith("context: ")
    assert "4 messages" in desk.notes[3]
    assert "still in the KV cache" in desk.notes[4]
    assert desk.notes[5].startswith("2 answers: ")


def test_stats_are_those_of_this_conversation(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    desk = Desk().type("one", f"/save {path}", "/clear", "/stats", "two", "/stats")
    assert desk.notes[3] == "No answer yet."
    assert "2 messages" in desk.notes[5]
    assert desk.notes[7].startswith("1 answers: ")
    desk.type(f"/load {path}", "/stats")
    assert desk.notes[-1] == "No answer since the conversation was loaded."
    assert desk.chat.totals.n_answers == 2


def test_stats_never_exceed_the_context() -> None:
    class LastTokenOutside(FakeSession):
        """As llama.cpp: the token that finds the context full is generated, but takes no position."""

        def chat(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Iterator[str]:
            yield from super().chat(messages, options)
            self.stats.n_generated += 1

    desk = Desk(LastTokenOutside(n_context=30)).type("one", "/stats")
    assert "context: 30 of 30 tokens used, 2 messages" in desk.notes


def test_speed_counts_decoding_steps() -> None:
    stats = GenerationStats(n_prompt=30, n_reused=10, n_generated=11, prompt_seconds=2.0, generate_seconds=5.0)
    prompt, _, generated = speed(stats).partition("; ")
    assert prompt == "prompt 20 tokens of 30, the others still in the KV cache, at 10.0 tokens/s"
    assert generated == "generated 11 tokens at 2.0 tokens/s"
    assert speed(GenerationStats()) == "prompt 0 tokens; generated 0 tokens"


def test_interrupt_keeps_the_answer_so_far_and_goes_on() -> None:
    class Interrupted(FakeSession):
        def chat(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Iterator[str]:
            stream = super().chat(messages, options)
            for count, text in enumerate(stream):
                if count == 3 and len(self.calls) == 1:
                    raise KeyboardInterrupt
                yield text

    desk = Desk(Interrupted()).type("one", "two")
    assert desk.notes == ["(stopped; the answer so far is kept)"]
    assert [message["content"] for message in desk.chat.conversation.messages] == ["one", "You", "two", "You said: two"]
    assert desk.out.getvalue() == "You\nYou said: two\n"


def test_interrupt_before_the_first_word_takes_the_question_back() -> None:
    class Slow(FakeSession):
        def chat(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Iterator[str]:
            raise KeyboardInterrupt

    desk = Desk(Slow()).type("one")
    assert desk.notes == ["(stopped)"]
    assert desk.roles == []
    assert desk.chat.totals.n_answers == 0


def test_second_interrupt_in_a_hurry_does_not_end_the_program() -> None:
    class Slow(FakeSession):
        def chat(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Iterator[str]:
            if len(messages) == 1:
                raise KeyboardInterrupt
            return super().chat(messages, options)

    def hurried(note: str) -> None:
        notes.append(note)
        if len(notes) == 1:
            raise KeyboardInterrupt

    notes: list[str] = []
    desk = Desk(Slow())
    desk.chat._note = hurried
    desk.chat.conversation.system = None
    desk.type("one", "/system S", "two")
    assert desk.roles == ["system", "user", "assistant"]
    assert notes[0] == "(stopped)"


def test_interrupt_without_a_terminal_ends_the_program() -> None:
    class Slow(FakeSession):
        def chat(self, messages: Sequence[Message], options: SamplingOptions | None = None) -> Iterator[str]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Desk(Slow(), interactive=False).type("one")


def test_interrupt_at_the_prompt_warns_once_and_then_leaves() -> None:
    desk = Desk()
    desk.chat.run(feeder(KeyboardInterrupt, "one", KeyboardInterrupt, "/exit"))
    assert len(desk.notes) == 2
    assert "Ctrl-C again leaves" in desk.notes[0]
    with pytest.raises(KeyboardInterrupt):
        desk.chat.run(feeder(KeyboardInterrupt, KeyboardInterrupt, "two"))
    assert desk.roles == ["user", "assistant"]


def test_error_takes_the_question_back_and_the_chat_goes_on() -> None:
    desk = Desk(FakeSession(n_context=60))
    desk.type("x" * 100, "one")
    assert "has 118 tokens and the context holds 60" in desk.notes[0]
    assert desk.last == "You said: one"
    assert desk.roles == ["user", "assistant"]


def test_conversation_longer_than_the_context_has_a_way_out() -> None:
    desk = Desk(FakeSession(n_context=60)).type("one", "two words", "/clear", "three")
    assert "the context holds 60" in desk.notes[0]
    assert "/clear starts anew" in desk.notes[1]
    assert "/save FILE keeps it" in desk.notes[1]
    assert desk.last == "You said: three"
    alone = Desk(FakeSession(n_context=60)).type("x" * 100)  # nothing to clear
    assert len(alone.notes) == 1


def test_error_without_a_terminal_ends_the_program() -> None:
    with pytest.raises(EngineError):
        Desk(FakeSession(n_context=10), interactive=False).type("x" * 100)


def test_full_context_is_explained() -> None:
    desk = Desk(FakeSession(n_context=30)).type("one")
    assert "the context of 30 tokens is full" in desk.notes[0]
    assert "/clear" in desk.notes[0]


def test_json_lines() -> None:
    desk = Desk(as_json=True, interactive=False).type("one", "é 🎉")
    lines = [json.loads(line) for line in desk.out.getvalue().splitlines()]
    assert [line["answer"] for line in lines] == ["You said: one", "You said: é 🎉"]
    assert lines[0]["stop_reason"] == "end"
    assert lines[1]["n_reused"] > 0
    assert "é 🎉" in desk.out.getvalue()


def test_terminal_gets_no_control_characters() -> None:
    answer = "a\x1b[2Jb\x07\x9b1m\r\n\tc é 🎉"
    assert Desk(FakeSession(lambda _: answer), on_terminal=True).type("x").out.getvalue() == "a[2Jb1m\n\tc é 🎉\n"
    assert Desk(FakeSession(lambda _: answer)).type("x").out.getvalue() == answer + "\n"


def test_loading_errors_are_of_the_documented_kinds(tmp_path: Path) -> None:
    desk = Desk(interactive=False)
    (tmp_path / "x").write_text("[]x")
    with pytest.raises(FormatError):
        desk.type(f"/load {tmp_path / 'x'}")
    with pytest.raises(OutputError):
        desk.type(f"/save {tmp_path}")
