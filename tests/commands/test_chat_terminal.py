"""`llmkit chat` on a terminal: a pseudo-terminal types, reads, and presses Ctrl-C and Ctrl-D."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

CTRL_C, CTRL_D = "\x03", "\x04"
PROMPT = r"> $"


class Terminal:
    """A program on a pseudo-terminal, and everything it has shown."""

    def __init__(self, *command: str | Path) -> None:
        import fcntl
        import termios

        self._end, inner = os.openpty()

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C becomes a signal only on a controlling terminal

        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmkit", *map(str, command)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            preexec_fn=take_terminal,
            env={**os.environ, "TERM": "dumb", "INPUTRC": "/dev/null"},
        )
        os.close(inner)
        self.shown = ""
        self._read = 0

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def interrupt_prompt(self) -> None:
        """Press Ctrl-C at the prompt, and not in the moment before readline waits for a key: it would miss it."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        at_rest, before, until = 0, [""], time.monotonic() + 60
        if not stat.exists():
            time.sleep(0.5)
        while stat.exists() and at_rest < 5:  # a program that only waits for its turn is not asleep
            state, *fields = stat.read_text().rpartition(") ")[2].split()
            processor_time = fields[10:12]
            assert time.monotonic() < until, "the program never comes to rest"
            at_rest = at_rest + 1 if (state, processor_time) == ("S", before) else 0
            before = processor_time
            time.sleep(0.1)
        self.type(CTRL_C)

    def expect(self, pattern: str, seconds: float = 120) -> str:
        """Wait until `pattern` appears behind what was expected before; the text up to its end."""
        until = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.shown[self._read :])
            if found:
                text = self.shown[self._read : self._read + found.end()]
                self._read += found.end()
                return text
            assert time.monotonic() < until, f"no {pattern!r} in {self.shown[self._read :]!r} after {self.shown!r}"
            if select.select([self._end], [], [], 0.2)[0]:
                try:
                    data = os.read(self._end, 65536)
                except OSError:  # Linux says so when the program has ended
                    data = b""
                assert data, f"ended before {pattern!r}: {self.shown!r}"
                self.shown += data.decode("utf-8", "replace").replace("\r\n", "\n")

    def wait(self, seconds: float = 60) -> int:
        """Exit status; what is shown until then is read."""
        until = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < until:
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self._end, 65536).decode("utf-8", "replace").replace("\r\n", "\n")
                except OSError:
                    break
        return self.process.wait(max(0.1, until - time.monotonic()))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._end)


def chat(model: Path, *options: str) -> Terminal:
    return Terminal("chat", model, "--threads", "1", "--context", "2048", "--seed", "1", *options)


LONG = "Write a very long story about the sea.\n"


def test_ctrl_c_stops_the_answer_and_not_the_program(smollm2_gguf: Path) -> None:
    with chat(smollm2_gguf) as terminal:
        banner = terminal.expect(PROMPT)
        assert "134.5 M parameters, context 2048 tokens" in banner
        terminal.type(LONG)
        terminal.expect(re.escape(LONG.strip()) + r"\s+(\w+\W+){5}")
        terminal.type(CTRL_C)
        terminal.expect(r"\(stopped; the answer so far is kept\)")
        terminal.expect(PROMPT)
        terminal.type("/stats\n")
        terminal.expect(r"2 messages\n")
        terminal.expect(PROMPT)
        terminal.type("And then?\n")
        terminal.expect(r"And then\?\s+\w+\W")
        terminal.type(CTRL_C)
        terminal.expect(PROMPT)
        terminal.type("/stats\n")
        terminal.expect(r"4 messages\n(.|\n)*others still in the KV cache")
        terminal.expect(PROMPT)
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
    assert "Traceback" not in terminal.shown


def test_ctrl_c_at_the_prompt_hints_and_then_leaves(smollm2_gguf: Path) -> None:
    with chat(smollm2_gguf) as terminal:
        terminal.expect(PROMPT)
        terminal.type("half a li")
        terminal.expect("half a li")
        terminal.interrupt_prompt()
        terminal.expect("Ctrl-C again leaves")
        terminal.expect(PROMPT)
        terminal.type("/nosuch\n")
        terminal.expect("There is no command /nosuch")
        terminal.expect(PROMPT)
        terminal.interrupt_prompt()
        terminal.expect("Ctrl-C again leaves")
        terminal.expect(PROMPT)
        terminal.interrupt_prompt()
        assert terminal.wait() == 0
    assert "Traceback" not in terminal.shown


def test_ctrl_c_ends_a_single_answer(smollm2_gguf: Path) -> None:
    with chat(smollm2_gguf, "-p", LONG) as terminal:
        terminal.expect(r"(\w+\W+){5}")
        terminal.type(CTRL_C)
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.shown
    assert "interrupted" in terminal.shown


def test_command_to_leave(smollm2_gguf: Path) -> None:
    with chat(smollm2_gguf, "-q") as terminal:
        assert terminal.expect(PROMPT) == "> "  # no banner when quiet
        terminal.type("/help\n")
        terminal.expect(r"/stats(.|\n)+" + PROMPT)
        terminal.type("/exit\n")
        assert terminal.wait() == 0
