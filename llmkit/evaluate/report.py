"""A comparison as one HTML page that opens without a network: plots by Plotly, whose code is in the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from typing import Any, Final

from llmkit.errors import DependencyError
from llmkit.evaluate.records import ComparedModel, Comparison, front_of, pareto

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c2430; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #dde3ea; vertical-align: top; }
td { white-space: nowrap; } th:first-child, td:first-child { text-align: left; white-space: normal; }
td.text { text-align: left; white-space: pre-wrap; }
tr.front td:first-child::after { content: " \\25C6"; color: #c05a1e; } .note { color: #5b6876; }
"""
_TENSOR: Final = re.compile(r"blk\.(?P<block>[0-9]+)\.(?P<role>[a-z0-9_]+)\.weight")


def require_plots() -> None:
    """Raise DependencyError if Plotly is not there: before anything is measured for it."""
    if find_spec("plotly") is None:
        raise DependencyError("plotly", "report", "a report with plots")


def to_html(comparison: Comparison) -> str:
    """The whole page. Raises DependencyError if Plotly is not installed."""
    require_plots()
    import plotly.graph_objects as go
    import plotly.io

    shown = [model for model in comparison.models if model.mean_kl is not None]
    figures: list[tuple[str, Any]] = []
    if shown:
        figures.append(("Size against divergence", _sizes(go, shown)))
        if any(_decoding(model) for model in shown):
            figures.append(("Speed against divergence", _speeds(go, shown)))
        figures.append(("Divergence by percentile", _percentiles(go, shown)))
    if any(_decoding(model) for model in comparison.models):
        figures.append(("Size against speed", _sizes_and_speeds(go, comparison.models)))
    figures += [
        (f"Error of the weights: {model.name}", _weights(go, model)) for model in comparison.models if _by_block(model)
    ]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'><link rel='icon' href='data:,'>",
        f"<title>llmkit: {len(comparison.models)} models compared</title><style>{_STYLE}</style></head><body>",
        f"<h1>{len(comparison.models)} models compared</h1>",
        f"<p class='note'>{comparison.n_windows} windows of {comparison.context} tokens of {escape(comparison.text)}."
        " A diamond marks models that no smaller one beats in divergence.</p>",
        _table(comparison),
    ]
    for number, (title, figure) in enumerate(figures):
        plot = plotly.io.to_html(
            figure,
            include_plotlyjs=not number,
            full_html=False,
            div_id=f"plot-{number}",
            config={"displaylogo": False, "responsive": True},
        )
        parts.append(f"<h2>{escape(title)}</h2>{plot}")
    parts.append(_answers(comparison))
    rows = "".join(f"<tr><td>{escape(k)}</td><td class='text'>{escape(v)}</td></tr>" for k, v in
                   comparison.environment.items())  # fmt: skip
    parts.append(f"<h2>Environment</h2><table>{rows}</table></body></html>")
    return "\n".join(parts)


def _decoding(model: ComparedModel) -> float | None:
    """Tokens a second of the first test of tokens one by one."""
    return next((mean for name, (mean, _) in model.speeds.items() if name.startswith("tg")), None)


def _table(comparison: Comparison) -> str:
    tests = list(dict.fromkeys(name for model in comparison.models for name in model.speeds))
    head = ["model", "MB", "perplexity", "bits/byte", "mean KL", "KL 99 %", "same top", *tests, "load", "memory"]
    front = front_of(comparison.models)
    rows = []
    for m in comparison.models:
        cells = [
            escape(m.name),
            f"{m.size / 1e6:,.1f}",
            f"{m.perplexity[0]:.3f} ± {m.perplexity[1]:.3f}",
            f"{m.bits_per_byte:.4f}",
            ("reference" if m.is_reference else "")
            if m.mean_kl is None
            else f"{m.mean_kl[0]:.5f} ± {m.mean_kl[1]:.5f}",
            f"{m.kl_percentiles[99.0]:.4f}" if m.kl_percentiles else "",
            "" if m.same_top is None else f"{m.same_top:.1%}",
            *(f"{m.speeds[test][0]:.1f}" if test in m.speeds else "" for test in tests),
            "" if m.load_seconds is None else f"{m.load_seconds:.2f} s",
            "" if m.memory is None else f"{m.memory / 1e6:,.0f} MB",
        ]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr class='{'front' if m.name in front else ''}'>{row}</tr>")
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table id='results'><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _answers(comparison: Comparison) -> str:
    parts = []
    for number, question in enumerate(comparison.questions):
        rows = "".join(
            f"<tr><td>{escape(model.name)}</td><td class='text'>{escape(model.answers[number])}</td></tr>"
            for model in comparison.models
            if len(model.answers) > number
        )
        parts.append(f"<h2>{escape(question)}</h2><table>{rows}</table>")
    return "".join(parts)


def _figure(go: Any, x: str, y: str, *, log: bool = False) -> Any:
    figure = go.Figure()
    figure.update_layout(
        template="plotly_white",
        margin={"l": 70, "r": 20, "t": 34, "b": 60},
        height=450,
        legend={"orientation": "h", "y": -0.2},
    )
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    if log:
        figure.update_yaxes(type="log")
    return figure


def _points(go: Any, figure: Any, points: dict[str, tuple[float, float]]) -> None:
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in points.values()],
            y=[y for _, y in points.values()],
            text=list(points),
            mode="markers+text",
            textposition="top center",
            marker={"size": 10, "color": "#2b6cb0"},
            showlegend=False,
        )
    )


def _line(go: Any, figure: Any, points: dict[str, tuple[float, float]], names: Sequence[str]) -> None:
    figure.add_trace(
        go.Scatter(
            x=[points[name][0] for name in names],
            y=[points[name][1] for name in names],
            mode="lines",
            line={"color": "#c05a1e", "dash": "dot"},
            name="Pareto front",
        )
    )


def _sizes(go: Any, models: Sequence[ComparedModel]) -> Any:
    points = {m.name: (m.size / 1e6, m.mean_kl[0]) for m in models if m.mean_kl is not None}
    figure = _figure(go, "size, MB", "mean KL divergence, nats", log=True)
    _line(go, figure, points, pareto(points))
    _points(go, figure, points)
    return figure


def _speeds(go: Any, models: Sequence[ComparedModel]) -> Any:
    points = {m.name: (s, m.mean_kl[0]) for m in models if m.mean_kl is not None and (s := _decoding(m)) is not None}
    figure = _figure(go, "decoding, tokens/s", "mean KL divergence, nats", log=True)
    _line(go, figure, points, pareto({name: (-x, y) for name, (x, y) in points.items()}))
    _points(go, figure, points)
    return figure


def _sizes_and_speeds(go: Any, models: Sequence[ComparedModel]) -> Any:
    points = {m.name: (m.size / 1e6, s) for m in models if (s := _decoding(m)) is not None}
    figure = _figure(go, "size, MB", "decoding, tokens/s")
    _line(go, figure, points, pareto({name: (x, -y) for name, (x, y) in points.items()}))
    _points(go, figure, points)
    return figure


def _percentiles(go: Any, models: Sequence[ComparedModel]) -> Any:
    figure = _figure(go, "percentile of tokens", "KL divergence, nats", log=True)
    for model in models:
        inner = sorted((p, value) for p, value in model.kl_percentiles.items() if 0 < p < 100 and value > 0)
        # Towards 100 % the steps become wider, as the percentiles become rarer.
        figure.add_trace(
            go.Scatter(
                x=[-math.log10(1 - p / 100) for p, _ in inner],
                y=[value for _, value in inner],
                mode="lines+markers",
                name=model.name,
            )
        )
    shown = (10.0, 50.0, 90.0, 99.0, 99.9)
    figure.update_xaxes(tickvals=[-math.log10(1 - p / 100) for p in shown], ticktext=[f"{p:g} %" for p in shown])
    return figure


def _by_block(model: ComparedModel) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for name, error in model.weight_errors.items():
        match = _TENSOR.fullmatch(name)
        if match and math.isfinite(error) and "norm" not in match["role"]:
            found.setdefault(match["role"], {})[int(match["block"])] = error
    return found


def _weights(go: Any, model: ComparedModel) -> Any:
    roles = _by_block(model)
    blocks = range(1 + max(block for errors in roles.values() for block in errors))
    figure = _figure(go, "block", "")
    figure.add_trace(
        go.Heatmap(
            x=list(blocks),
            y=list(roles),
            z=[[errors.get(block) for block in blocks] for errors in roles.values()],
            colorscale="Blues",
            colorbar={"title": "relative<br>RMS error"},
        )
    )
    return figure
