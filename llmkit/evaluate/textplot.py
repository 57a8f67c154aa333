"""A scatter plot in characters, for terminals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def scatter(
    points: Mapping[str, tuple[float, float]],
    marked: list[str],
    *,
    labels: tuple[str, str],
    columns: int = 64,
    rows: int = 16,
) -> str:
    """Points by name as letters, `marked` ones in square brackets in the legend; the second coordinate on a log scale.

    labels: of the two axes. Second coordinates that are not above zero are drawn at the lowest that is.
    """
    least = min((y for _, y in points.values() if y > 0), default=1.0)
    places = {name: (x, math.log10(max(y, least))) for name, (x, y) in points.items()}
    x_range, y_range = (_range([place[i] for place in places.values()]) for i in (0, 1))
    grid = [[" "] * columns for _ in range(rows)]
    legend = []
    for letter, (name, (x, y)) in zip(_LETTERS, places.items(), strict=False):
        column = round((x - x_range[0]) / (x_range[1] - x_range[0]) * (columns - 1))
        row = round((y_range[1] - y) / (y_range[1] - y_range[0]) * (rows - 1))
        grid[row][column] = letter if grid[row][column] == " " else "*"
        legend.append(f"  [{letter}] {name}" if name in marked else f"   {letter}  {name}")
    ticks = {0: 10 ** y_range[1], rows - 1: 10 ** y_range[0]}
    lines = [labels[1]]
    lines += [f"{f'{ticks[i]:.3g}' if i in ticks else '':>9} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    left, right = f"{x_range[0]:.4g}", f"{x_range[1]:.4g}"
    lines.append(f"{'':>9} +{'-' * columns}")
    lines.append(f"{'':>11}{left}{right.rjust(columns - len(left))}  {labels[0]}")
    return "\n".join([*lines, *legend])


def _range(values: list[float]) -> tuple[float, float]:
    """The values' range and a twentieth more to each side."""
    low, high = min(values), max(values)
    margin = (high - low) / 20 or 0.5
    return low - margin, high + margin
