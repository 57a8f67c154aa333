"""Convert Hugging Face checkpoints to quantised GGUF files, and run them.

    result = llmkit.convert("path/to/checkpoint", "gguf-q4")
    with llmkit.load(result.path) as model:
        for text in model.chat([{"role": "user", "content": "Hello"}]):
            print(text, end="", flush=True)

Everything is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.api import convert, load, quantize
    from llmkit.benchmark import Benchmark, bench
    from llmkit.comparison import compare
    from llmkit.conversion import ConversionResult
    from llmkit.errors import LlmkitError
    from llmkit.evaluate.records import Comparison
    from llmkit.evaluation import Evaluation, evaluate
    from llmkit.importance import ImportanceResult, compute_importance
    from llmkit.protocols import GenerationStats, Message, SamplingOptions, Session
    from llmkit.recommendation import Recommendation, recommend
    from llmkit.tasks import ask, run_tasks
    from llmkit.weights import WeightComparison, compare_weights

__version__ = "0.1.0"

__all__ = [
    "Benchmark",
    "Comparison",
    "ConversionResult",
    "Evaluation",
    "GenerationStats",
    "ImportanceResult",
    "LlmkitError",
    "Message",
    "Recommendation",
    "SamplingOptions",
    "Session",
    "WeightComparison",
    "__version__",
    "ask",
    "bench",
    "compare",
    "compare_weights",
    "compute_importance",
    "convert",
    "evaluate",
    "load",
    "quantize",
    "recommend",
    "run_tasks",
]

_HOMES = {
    "Benchmark": "llmkit.benchmark",
    "bench": "llmkit.benchmark",
    "Comparison": "llmkit.evaluate.records",
    "compare": "llmkit.comparison",
    "ConversionResult": "llmkit.conversion",
    "load": "llmkit.api",
    "Evaluation": "llmkit.evaluation",
    "LlmkitError": "llmkit.errors",
    "ImportanceResult": "llmkit.importance",
    "compute_importance": "llmkit.importance",
    "Recommendation": "llmkit.recommendation",
    "recommend": "llmkit.recommendation",
    "ask": "llmkit.tasks",
    "run_tasks": "llmkit.tasks",
    "GenerationStats": "llmkit.protocols",
    "Message": "llmkit.protocols",
    "SamplingOptions": "llmkit.protocols",
    "Session": "llmkit.protocols",
    "WeightComparison": "llmkit.weights",
    "compare_weights": "llmkit.weights",
}


def __getattr__(name: str) -> Any:
    if name in ("convert", "evaluate", "quantize"):
        return import_module(f"llmkit.{name}")  # the package, which can be called
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
