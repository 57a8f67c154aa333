"""Which distributions are installed; `a|b` is either of two."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def is_installed(packages: str) -> bool:
    """Whether one of the distributions is there."""
    return any(installed_version(name) is not None for name in packages.split("|"))
