"""The page and the plot of a comparison; the page also in a browser, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llmkit.evaluate.records import ComparedModel, Comparison, front_of, pareto
from llmkit.evaluate.report import to_html
from llmkit.evaluate.textplot import scatter

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def model(name: str, size: int, kl: float | None, speed: float, **more: object) -> ComparedModel:
    return ComparedModel(
        name=name,
        engine="llama.cpp",
        size=size,
        is_reference=kl is None,
        perplexity=(17.0, 0.5),
        bits_per_byte=0.9,
        mean_kl=None if kl is None else (kl, kl / 50),
        kl_percentiles={} if kl is None else {100.0: 9 * kl, 99.0: 5 * kl, 50.0: kl / 2, 1.0: kl / 90, 0.0: 0.0},
        same_top=None if kl is None else 0.9,
        speeds={"pp512": (10 * speed, 1.0), "tg128": (speed, 0.5)},
        load_seconds=0.5,
        memory=300_000_000,
        **more,  # type: ignore[arg-type]
    )


ERRORS = {f"blk.{i}.{role}.weight": 0.01 * (i + 1) for i in range(3) for role in ("attn_q", "ffn_down", "attn_norm")}
MODELS = (
    model("original <f32>", 400, None, 10),
    model("q8", 200, 0.005, 20, weight_errors=ERRORS, answers=("<b>Mass</b> & matter.", "def f(): ...")),
    model("q4", 110, 0.07, 30),
    model("worse q4", 120, 0.09, 25),
)
COMPARISON = Comparison("text.txt", 4, 512, MODELS, ("What is gravity?", "Reverse <it>."), {"processor": "a & b"})


def test_the_front_is_of_what_no_smaller_model_beats() -> None:
    assert front_of(MODELS) == ["q4", "q8"]
    assert pareto({"a": (1, 5), "b": (1, 4), "c": (2, 4), "d": (3, 1)}) == ["b", "d"]
    assert pareto({}) == []


def test_the_page_holds_everything_and_loads_nothing() -> None:
    page = to_html(COMPARISON)
    assert page.count('id="plot-') == 5
    for title in ("Size against divergence", "Speed against divergence", "Divergence by percentile",
                  "Size against speed", "Error of the weights: q8"):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    # Plotly's own code names addresses, such as that of its maps' tiles, which these plots do not use.
    assert not re.search(r"<(script|link|img|iframe)[^>]{0,200}(src|href)=[\"']?https?:", page)
    assert "original &lt;f32&gt;" in page
    assert "&lt;b&gt;Mass&lt;/b&gt; &amp; matter." in page
    assert "<b>Mass" not in page
    assert "attn_norm" not in page


def test_models_without_divergence_or_speed() -> None:
    plain = ComparedModel("m", "e", 5, False, (3.0, 0.1), 1.0)
    page = to_html(Comparison("t", 1, 64, (plain,), (), {}))
    assert 'id="plot-' not in page
    assert "<td>m</td>" in page


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_browser_shows_it_without_errors(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(to_html(COMPARISON))
    command = [
        *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--virtual-time-budget=8000", "--enable-logging=stderr", "--dump-dom", path.as_uri()),
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in found.stderr
    assert len(re.findall(r'class="plot-container', found.stdout)) == 5
    assert "hm" in found.stdout  # Plotly's layer of the heat map


def test_the_plot_for_terminals() -> None:
    drawn = scatter({"a": (1, 0.1), "b": (2, 0.01), "c": (3, 0.0)}, ["a"], labels=("MB", "KL"), columns=20, rows=5)
    lines = drawn.splitlines()
    assert lines[0] == "KL"
    body = [line.partition("|")[2] for line in lines[1:6]]
    (top,) = (line for line in body if "A" in line)
    (bottom,) = (line for line in body if "B" in line)
    assert body.index(top) < body.index(bottom)
    assert top.index("A") < bottom.index("B") < bottom.index("C")
    assert lines[-3:] == ["  [A] a", "   B  b", "   C  c"]
    assert scatter({"one": (1, 1)}, [], labels=("x", "y"))
