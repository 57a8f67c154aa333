"""Measuring quality: windows of a text, what models make of them, and the statistics of that.

The public function `llmkit.evaluate(...)` has the same name as this package, so the package itself can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.evaluation import Evaluation


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Evaluation:
        from llmkit.evaluation import evaluate

        return evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
