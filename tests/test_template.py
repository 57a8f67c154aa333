"""Chat templates: equal to transformers on honest ones, bounded on hostile ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import llmkit.template
from llmkit.errors import DependencyError, TemplateError
from llmkit.protocols import Message
from llmkit.template import ChatTemplate, Limits, choose_template
from tests.chat_templates import CONVERSATIONS, TEMPLATES

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
HELLO: list[Message] = [{"role": "user", "content": "hi"}]


def render(source: str, messages: list[Message] = HELLO, limits: Limits | None = None, **extra: Any) -> str:
    with ChatTemplate(source, variables=TOKENS, limits=limits) as template:
        return template.render(messages, **extra)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generation_prompt", [True, False])
def test_renders_what_transformers_renders(name: str, generation_prompt: bool) -> None:
    source = TEMPLATES[name]
    outcomes = set()
    with ChatTemplate(source, variables=TOKENS) as template:
        for messages in CONVERSATIONS:
            expected, refusal = _by_transformers(source, messages, generation_prompt)
            if expected is not None:
                assert template.render(messages, add_generation_prompt=generation_prompt) == expected
            else:
                with pytest.raises(TemplateError, match="refuses these messages") as caught:
                    template.render(messages, add_generation_prompt=generation_prompt)
                assert refusal in str(caught.value)
            outcomes.add("refused" if expected is None else "rendered")
    assert "rendered" in outcomes


def _by_transformers(source: str, messages: list[Message], generation_prompt: bool = True) -> tuple[str | None, str]:
    """What transformers renders, or None and the template's reason to refuse."""
    from jinja2.exceptions import TemplateError as JinjaError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        (text,), _ = render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=generation_prompt, **TOKENS
        )
    except JinjaError as error:
        return None, str(error)
    return text, ""


def test_template_of_the_packaged_model_equals_transformers(smollm2_gguf: Path) -> None:
    from llmkit.formats.gguf import open_gguf

    with open_gguf(smollm2_gguf) as file:
        source = file.get("tokenizer.chat_template")
    assert "<|im_start|>" in source
    for messages in CONVERSATIONS:
        assert render(source, messages) == _by_transformers(source, messages)[0]


HELPERS = {
    "{{ strftime_now('%Y') }}": time.strftime("%Y"),
    "{{ {'b': '<é&>', 'a': [1, none, true]} | tojson }}": '{"b": "<é&>", "a": [1, null, true]}',
    "{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}": '{\n  "a": 2,\n  "b": 1\n}',
    "{% generation %}x{% set y = 1 %}{% endgeneration %}{{ y is defined }}": "xFalse",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}": "1",
    "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
    "{% endfor %}": "02",
    "{{ dict(a=1)['a'] }}": "1",
    "{% if tools is none and documents is none %}no tools{% endif %}": "no tools",
    "  {% if true %}\n  x\n  {% endif %}\n": "  x\n",
    "{{ bos_token }}{{ eos_token }}{{ enable_thinking }}": "<s></s>False",
    "{{ messages | pprint }}{{ '&amp;' | striptags }}": "[{'content': 'hi', 'role': 'user'}]&",
    "{{ messages[0].content.split('i')[0] ~ '\\u00e9' }}": "hé",
}


@pytest.mark.parametrize("source", HELPERS)
def test_helpers_that_templates_expect(source: str) -> None:
    assert render(source, enable_thinking=False) == HELPERS[source]


ATTACKS = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "endless loops that write": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "loop without Python code": "{{ range(99999) | map('string') | map('center', 9999) | map('length') | sum }}"
    "{{ range(99999) | map('string') | map('center', 9999) | map('upper') | map('length') | sum }}" * 9,
    "long string": "{{ 'a' * 10 ** 9 }}",
    "very long string": "{{ ('a' * 10 ** 12) | length }}",
    "long list": "{{ ([0] * 10 ** 10) | length }}",
    "long tuple": "{{ ((1,) * 10 ** 11) | length }}",
    "powers": "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "one big power": "{{ (10 ** 30000000) % 7 }}",
    "wide %": "{{ '%0999999999d' % 1 }}",
    "wide format": "{{ '{:>9999999999}'.format(1) }}",
    "wide center": "{{ 'a' | center(9999999999) }}",
    "wide indent": "{{ ('a\n' * 100000) | indent(100000) }}",
    "wide join": "{{ range(99999) | join('x' * 100000) }}",
    "wide replace": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "wide strftime": "{{ strftime_now('%999999999d' * 9) or 1 / 0 }}",
    "doubling": "{% set ns = namespace(x='aaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "much output": "{% for i in range(99999) %}{{ 'x' * 100000 }}{% endfor %}",
    "huge range": "{{ range(10 ** 18) | list }}",
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
    "deep parentheses": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "deep unary": "{{ " + "-" * 100000 + "1 }}",
    "long sum": "{{ " + "+".join("1" * 100000) + " }}",
    "deep blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "lorem ipsum": "{{ lipsum(n=100000000) }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "class by format": "{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}{{ 1 / 0 }}",
    "changing the messages": "{{ messages.append(1) }}",
    "private namespace attribute": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "private namespace argument": "{% set ns = namespace(_x=1) %}",
    "including a file": "{% include '/etc/passwd' %}",
    "importing": "{% import 'os' as os %}",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_end_in_an_error(attack: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TemplateError, match="chat template 'default'") as caught:
        render(ATTACKS[attack], limits=Limits(cpu_seconds=0.5))
    assert len(str(caught.value)) < 700
    # Processor time is what is bounded; on a busy machine the clock runs on, up to `wall_seconds`.
    assert time.perf_counter() - started < 20


MEASURE = """
import resource
from llmkit.errors import TemplateError
from llmkit.template import ChatTemplate
for source in ("{{ 'a' * 10 ** 9 }}", "{{ range(99999) | map('string') | map('center', 99999) | join }}"):
    with ChatTemplate(source) as template:
        try:
            template.render([])
            raise SystemExit("not stopped")
        except TemplateError as error:
            assert "memory" in str(error), error
# This process's own ru_maxrss would start from the size of the process that started it; VmHWM does not.
own = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, own)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound the address space")
def test_memory_of_an_attack_is_bounded() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    worker, own = (int(word) << 10 for word in done.stdout.split())
    assert worker < 384 << 20
    assert own < 200 << 20


def test_endless_template_is_stopped_by_its_processor_time() -> None:
    with pytest.raises(TemplateError, match=r"took more than 0\.3 s of processor time and was stopped"):
        render(ATTACKS["endless loops"], limits=Limits(cpu_seconds=0.3))


def test_wall_clock_stops_what_uses_no_processor_time() -> None:
    with ChatTemplate("x", limits=Limits(wall_seconds=0.5)) as template:
        assert template.render(HELLO) == "x"
        assert template._worker is not None
        os.kill(template._worker._process.pid, signal.SIGSTOP)
        with pytest.raises(TemplateError, match="was stopped"):
            template.render(HELLO)


def test_output_is_bounded() -> None:
    with pytest.raises(TemplateError, match="writes more than 1000 characters"):
        render("{% for i in range(1001) %}x{% endfor %}", limits=Limits(output_chars=1000))
    assert len(render("{% for i in range(1000) %}x{% endfor %}", limits=Limits(output_chars=1000))) == 1000


def test_source_is_bounded() -> None:
    with pytest.raises(TemplateError, match="has 1048577 characters"):
        ChatTemplate("x" * (2**20 + 1))


def test_template_works_again_after_it_was_stopped() -> None:
    source = "{% if messages|length > 1 %}" + ATTACKS["endless loops"] + "{% endif %}ok"
    with ChatTemplate(source, limits=Limits(cpu_seconds=0.3)) as template:
        assert template.render(HELLO) == "ok"
        with pytest.raises(TemplateError):
            template.render(HELLO * 2)
        assert template.render(HELLO) == "ok"


def test_crash_of_the_process_is_an_error() -> None:
    with ChatTemplate("x") as template:
        template.render(HELLO)
        assert template._worker is not None
        process = template._worker._process
        process.send_signal(signal.SIGSEGV)
        process.wait()
        with pytest.raises(TemplateError, match=r"crashed the process it ran in \(signal 11\)"):
            template.render(HELLO)
        assert template.render(HELLO) == "x"


OPEN_FILES = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
worker.drop_privileges(1 << 30)
for attempt in (lambda: open("/etc/passwd"), lambda: os.open("x", os.O_CREAT), os.pipe):
    try:
        attempt()
    except OSError:
        print("no")
"""


def test_process_can_open_nothing() -> None:
    worker = Path(llmkit.template.__file__).with_name("template_worker.py")
    done = subprocess.run([sys.executable, "-c", OPEN_FILES, worker], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["no"] * 3


def test_own_message_of_the_template_is_shown() -> None:
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    with pytest.raises(TemplateError, match="refuses these messages: System role not supported"):
        render(source, [{"role": "system", "content": "x"}])


def test_messages_of_templates_cannot_steer_the_terminal() -> None:
    with pytest.raises(TemplateError) as caught:
        render("{{ raise_exception('\\x1b[2J' ~ 'evil' ~ 'x' * 9999) }}")
    assert "\x1b" not in str(caught.value)
    assert "evil" in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("one\n{% if %}", r"not valid Jinja \(line 2\)"),
        ("one\n\n{% for m in messages %}", r"not valid Jinja \(line 3\): Unexpected end"),
        ("{{ 'open }}", "not valid Jinja"),
        ("{% nosuchtag %}", "unknown tag 'nosuchtag'"),
        ("\n{{ foo.bar }}", r"failed \(line 2\): UndefinedError: 'foo' is undefined"),
        ("{{ 1 + 'a' }}", r"failed \(line 1\): TypeError"),
        ("{{ 'x' | nosuchfilter }}", "nosuchfilter"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% for x in y %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
    ],
)
def test_mistakes_are_explained(source: str, expected: str) -> None:
    with pytest.raises(TemplateError, match=expected):
        render(source)


def test_message_that_is_not_json_is_refused() -> None:
    with pytest.raises(TemplateError, match="plain JSON data"):
        render("x", [{"role": "user", "content": object()}])  # type: ignore[typeddict-item]


def test_text_comes_through_unchanged() -> None:
    text = "é 漢字 🎉 \x00 \ud800 '\"\\ {{ x }} {% raw %}\r\n\u2028"
    assert render("{{ messages[0]['content'] }}", [{"role": "user", "content": text}]) == text


def test_missing_jinja_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.template.find_spec", lambda _name: None)
    with pytest.raises(DependencyError, match=r"pip install 'llmkit\[llama\]'"):
        render("x")


def test_interrupt_leaves_the_template_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    with ChatTemplate("ok") as template:
        template.render(HELLO)
        with monkeypatch.context() as patch:
            patch.setattr(json, "loads", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                template.render(HELLO)
        assert template.render(HELLO) == "ok"


def _interrupt(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_choice_of_templates(tmp_path: Path) -> None:
    two = {"default": "A", "tool_use": "B"}
    assert choose_template(two, None, "m") == ("default", "A")
    assert choose_template(two, "tool_use", "m") == ("tool_use", "B")
    assert choose_template({"only": "C"}, None, "m") == ("only", "C")
    with pytest.raises(TemplateError, match=r"choose one .*: 'a', 'b'"):
        choose_template({"a": "", "b": ""}, None, "m")
    with pytest.raises(TemplateError, match=r"m: no chat template is called 'x' \(it has 'default', 'tool_use'\)"):
        choose_template(two, "x", "m")
    with pytest.raises(TemplateError, match=r"has no chat template.*--template FILE\.jinja.*llmkit generate m"):
        choose_template({}, None, "m")
    file = tmp_path / "mine.jinja"
    file.write_text("D é", encoding="utf-8")
    assert choose_template({}, str(file), "m") == ("mine.jinja", "D é")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match="UTF-8"):
        choose_template({}, str(file), "m")
