"""scripts/demo from a checkpoint to an answer, and what the set-up says when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from shutil import copy

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_demo_answers_without_torch_or_transformers(tmp_path: Path) -> None:
    for name in ("torch", "transformers", "safetensors"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not part of the demo')")
    environment = {**os.environ, "LLMKIT_VENV": sys.prefix, "PYTHONPATH": str(tmp_path)}
    command = [str(ROOT / "scripts" / "demo"), "What", "is", "gravity?"]
    # From another folder, and twice: the second run uses the checkpoint of the first.
    runs = [subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True) for _ in range(2)]
    for run in runs:
        assert run.returncode == 0, run.stderr
        assert "force" in run.stdout.lower() or "gravit" in run.stdout.lower()
        assert "tokens/s" in run.stderr
        assert "105.5 MB  GGUF, Q4_K_M; converted in" in run.stderr
    assert "make_checkpoint.py" not in runs[1].stderr
    assert runs[0].stdout.splitlines()[-1] == runs[1].stdout.splitlines()[-1]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository without an environment, as far as the set-up looks at it."""
    (tmp_path / "scripts").mkdir()
    for name in ("environment.sh", "test"):
        copy(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _set_up(clone: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMKIT_")} | variables
    command = [str(clone / "scripts" / "test"), "--version"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_an_old_python_is_refused_by_name(clone: Path) -> None:
    result = _set_up(clone, LLMKIT_PYTHON="/bin/false")
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr


def test_a_python_without_ensurepip_is_told_the_package(clone: Path) -> None:
    python = clone / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    result = _set_up(clone, LLMKIT_PYTHON=str(python))
    assert result.returncode == 1
    assert "apt install python3-venv" in result.stderr
    assert not (clone / ".venv").exists()


def test_a_given_environment_is_used_as_it_is(clone: Path) -> None:
    result = _set_up(clone, LLMKIT_VENV=sys.prefix)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("pytest ")
    missing = _set_up(clone, LLMKIT_VENV=str(clone / "nowhere"))
    assert missing.returncode == 1
    assert "holds no virtual environment" in missing.stderr


def test_a_failed_installation_shows_the_end_of_its_log(clone: Path) -> None:
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *"pip install"*) echo "no matching distribution"; exit 1;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    result = _set_up(clone)
    assert result.returncode == 1
    assert "no matching distribution" in result.stderr
    assert "installing llmkit[test]: failed" in result.stderr
    assert not (clone / ".venv" / ".llmkit-test").exists()  # the next run tries again


@pytest.mark.parametrize("script", ["bench", "check", "demo", "environment.sh", "test", "../.ci/run"])
def test_scripts_are_valid_bash(script: str) -> None:
    path = ROOT / "scripts" / script
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert script == "environment.sh" or os.access(path, os.X_OK)
