"""Arrays of graph builders: what Python's operators do to them becomes nodes of a graph."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from llmkit.convert.network.arrays import Arrays

Kind = Literal["float", "integer", "boolean"]
Operand = "Recorded | float"


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A value of a graph, and what it holds."""

    value: Any
    kind: Kind
    recorder: Recorder

    def __add__(self, other: Recorded | float) -> Recorded:
        return self.recorder.binary("Add", self, other)

    def __radd__(self, other: float) -> Recorded:
        return self.recorder.binary("Add", self, other)

    def __sub__(self, other: Recorded | float) -> Recorded:
        return self.recorder.binary("Sub", self, other)

    def __mul__(self, other: Recorded | float) -> Recorded:
        return self.recorder.binary("Mul", self, other)

    def __rmul__(self, other: float) -> Recorded:
        return self.recorder.binary("Mul", self, other)

    def __truediv__(self, other: Recorded | float) -> Recorded:
        return self.recorder.binary("Div", self, other)

    def __le__(self, other: Recorded | float) -> Recorded:
        return self.recorder.binary("LessOrEqual", self, other)

    def __gt__(self, other: Recorded | float) -> Recorded:
        return self.recorder.binary("Greater", self, other)

    def __and__(self, other: Recorded) -> Recorded:
        return self.recorder.binary("And", self, other)


class Recorder(Arrays):
    """Operations that add nodes to a graph."""

    @abstractmethod
    def binary(self, operation: str, x: Recorded, y: Recorded | float) -> Recorded:
        """An operation by its name in ONNX; a number is of the kind of `x`."""
