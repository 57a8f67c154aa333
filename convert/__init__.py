"""From a checkpoint or a GGUF file to a GGUF file: reading, planning, executing, verifying.

The public function `llmkit.convert(...)` has the same name as this package, so the package itself can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.conversion import ConversionResult


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> ConversionResult:
        from llmkit.api import convert

        return convert(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
