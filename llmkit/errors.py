"""Every error that llmkit raises on purpose.

    LlmkitError
    ├── FormatError            a file is not what its format requires
    ├── UnsupportedError       valid, but of a kind llmkit does not know (architecture, type, tokenizer)
    ├── ModelNotFoundError     a MODEL argument leads to no model, or to several
    ├── HubError               the Hugging Face hub refused or could not be reached
    ├── NonFiniteError         a weight is NaN or infinite
    ├── VerificationError      what was written, read back, is not what it should be
    ├── OutputError            the output cannot be written (exists, no space, no permission)
    ├── DependencyError        an optional package is missing; names the extra to install
    ├── TemplateError          a chat template is broken, refuses the messages, or exceeds its bounds
    ├── EvaluationError        a text or models that cannot be measured
    └── EngineError            a runtime failed to load or run a model

A message says which file and tensor, what was expected, what was found, and what to do next.
"""

from __future__ import annotations

from os import PathLike, fspath


class LlmkitError(Exception):
    """Base class: the command line prints the message and exits with status 1."""


class FormatError(LlmkitError):
    """A file violates its format. `path` is that file, `tensor` the tensor concerned, if any."""

    def __init__(self, path: str | PathLike[str], problem: str, *, tensor: str | None = None) -> None:
        self.path = fspath(path)
        self.tensor = tensor
        where = self.path if tensor is None else f"{self.path}: tensor {tensor!r}"
        super().__init__(f"{where}: {problem}")


class UnsupportedError(LlmkitError):
    """The input is valid but of a kind that llmkit does not handle."""


class ModelNotFoundError(LlmkitError):
    """A MODEL argument could not be resolved to exactly one model."""


class HubError(LlmkitError):
    """A request to the Hugging Face hub failed."""


class NonFiniteError(LlmkitError):
    """A weight is NaN or infinite where finite values are required."""


class VerificationError(LlmkitError):
    """What was written differs too much from its source."""


class EvaluationError(LlmkitError):
    """A text is too short, models do not go together, or what one computes is not a number."""


class OutputError(LlmkitError):
    """The output cannot be written."""


class DependencyError(LlmkitError):
    """An optional dependency is missing."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'llmkit[{extra}]'")


class TemplateError(LlmkitError):
    """A chat template cannot be rendered."""


class EngineError(LlmkitError):
    """A runtime failed to load or run a model."""
