"""The rules of the house, read from the sources: who imports whom, how kernels are compiled, what a wheel holds."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS = {package: ROOT / folder for package, folder in SETUPTOOLS["package-dir"].items()}
MAX_LINES = 450

# package -> what of llmkit, and which libraries, its modules may import. The first matching prefix counts.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "llmkit.kernels": (set(), {"numpy", "numba", "llvmlite"}),
    "llmkit.quantize": ({"kernels", "types", "errors"}, {"numpy"}),
    "llmkit.convert.onnx": (
        {"convert", "kernels", "quantize", "formats", "types", "errors", "protocols", "__version__"},
        {"numpy", "onnx_ir"},
    ),
    "llmkit.convert.frameworks": (
        {"convert", "quantize", "formats", "types", "errors", "protocols", "__version__"},
        {
            "numpy",
            "torch",
            "transformers",
            "openvino",
            "openvino_tokenizers",
            "onnx_ir",
            "jax",
            "iree",
            "tensorflow",
            "executorch",
            "tensorrt_rtx",
            *("litert_torch", "ai_edge_quantizer", "litert_lm_builder"),
            "coremltools",
        },
    ),
    "llmkit.convert": ({"kernels", "quantize", "formats", "types", "errors", "protocols"}, {"numpy", "yaml"}),
    "llmkit.formats.pytorch": ({"formats.files", "types", "errors"}, {"torch"}),
    "llmkit.formats.parquet": ({"errors"}, {"pyarrow"}),
    "llmkit.formats": ({"types", "errors", "protocols"}, {"numpy"}),
    "llmkit.runtimes": (
        {"formats", "template", "types", "errors", "protocols"},
        {
            *("numpy", "llama_cpp", "onnxruntime_genai", "threadpoolctl", "tokenizers", "torch", "transformers"),
            *("onnxruntime", "openvino", "jax", "iree", "tensorflow", "ai_edge_litert", "executorch"),
        },
    ),
    "llmkit.evaluate": ({"kernels", "formats", "types", "errors", "protocols"}, {"numpy", "plotly", "lm_eval"}),
    "llmkit.types": (set(), set()),
    "llmkit.errors": (set(), set()),
    "llmkit.protocols": ({"types"}, {"numpy"}),
}
# The public functions llmkit.convert and llmkit.quantize share their names with these packages, which therefore call
# the API.
EXCEPTIONS = {
    (package, home) for package in ("llmkit.convert", "llmkit.quantize") for home in ("llmkit.api", "llmkit.conversion")
} | {("llmkit.evaluate", "llmkit.evaluation")}

# Engines and what belongs to them are imported in their own adapter only.
ADAPTERS = {
    "llama_cpp": ("llmkit.runtimes",),
    "tokenizers": ("llmkit.runtimes",),
    "torch": (
        *("llmkit.runtimes.torch", "llmkit.runtimes.exported.torch", "llmkit.formats.pytorch"),
        *("llmkit.convert.frameworks.torch", "llmkit.convert.frameworks.litert"),
        "llmkit.runtimes.exported.executorch",
        "llmkit.convert.frameworks.executorch",
    ),
    "transformers": ("llmkit.runtimes.torch", "llmkit.convert.frameworks.openvino"),
    "onnx_ir": ("llmkit.convert.onnx", "llmkit.convert.frameworks.onnx"),
    "onnxruntime": ("llmkit.runtimes.ort", "llmkit.runtimes.exported.ort"),
    "openvino": ("llmkit.runtimes.exported.openvino", "llmkit.convert.frameworks.openvino"),
    "openvino_tokenizers": ("llmkit.convert.frameworks.openvino",),
    "iree": ("llmkit.runtimes.exported.iree", "llmkit.convert.frameworks.iree"),
    "jax": (
        *("llmkit.runtimes.exported.jax", "llmkit.convert.frameworks.jax", "llmkit.convert.frameworks.stablehlo"),
        "llmkit.convert.frameworks.savedmodel",
    ),
    "litert_torch": ("llmkit.convert.frameworks.litert",),
    "ai_edge_quantizer": ("llmkit.convert.frameworks.litert",),
    "litert_lm_builder": ("llmkit.convert.frameworks.litert",),
    "ai_edge_litert": ("llmkit.runtimes.exported.litert",),
    "tensorrt_rtx": ("llmkit.convert.frameworks.tensorrt",),
    "coremltools": ("llmkit.convert.frameworks.coreml",),
    "tensorflow": ("llmkit.runtimes.exported.tensorflow", "llmkit.convert.frameworks.savedmodel"),
    "executorch": ("llmkit.runtimes.exported.executorch", "llmkit.convert.frameworks.executorch"),
    "onnxruntime_genai": ("llmkit.runtimes.ort",),
    "jinja2": ("llmkit.template",),
    "huggingface_hub": ("llmkit.hub",),
    "pyarrow": ("llmkit.formats.parquet",),
    "lm_eval": ("llmkit.evaluate.harness",),
}
# Slow to import (0.1 s and more): inside functions, or in modules that are imported only when they are needed.
SLOW = {"numba", "numpy", "torch", "transformers", "llama_cpp", "jinja2", "huggingface_hub", "yaml", "gguf"}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """Absolute names of everything that is imported anywhere in the module."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: relative import; write the full name"
                assert node.module is not None
                # `from llmkit import errors` names a module, `from llmkit.errors import X` need not.
                yield from (
                    [f"llmkit.{alias.name}" for alias in node.names] if node.module == "llmkit" else [node.module]
                )


def _modules() -> list[Module]:
    found = []
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    return found


MODULES = _modules()


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_modules_are_found() -> None:
    names = {module.name for module in MODULES}
    assert {"llmkit.cli", "llmkit.kernels", "llmkit.quantize.schemes.q4_k", "llmkit.convert.plan"} <= names


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_respect_the_layers(module: Module) -> None:
    package = next((package for package in MAY_IMPORT if _inside(module.name, package)), None)
    if package is None:
        return
    parts, libraries = MAY_IMPORT[package]
    allowed = {package, *(f"llmkit.{part}" for part in parts)}
    for name in module.imports():
        top = name.split(".")[0]
        if top == "llmkit":
            fits = any(_inside(name, other) for other in allowed) or (module.name, name) in EXCEPTIONS
        else:
            fits = top in sys.stdlib_module_names or top in libraries
        assert fits, (
            f"{module.path.relative_to(ROOT)} imports {name}; {package} may import {sorted(allowed)}, {libraries}"
        )


def test_engines_stay_in_their_adapters() -> None:
    for module in MODULES:
        for name in module.imports():
            homes = ADAPTERS.get(name.split(".")[0])
            # A home may be one module, several that share its name's beginning, or a package.
            fits = homes is None or module.name.startswith(homes)
            assert fits, f"{module.path} imports {name}, which belongs to {homes}"


@pytest.mark.parametrize("folder", ["llmkit", "kernels", "quantize", "convert", "tests", "scripts"])
def test_nothing_is_imported_by_a_bare_folder_name(folder: str) -> None:
    bare = {"kernels", "quantize", "convert", "pickle"}
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name in Module(path.stem, path, tree).imports() if folder != "tests" else _absolute_imports(tree):
            assert name.split(".")[0] not in bare, f"{path} imports {name}"


def _absolute_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def test_kernels_are_compiled_in_one_place_only() -> None:
    """kernels/jit.py compiles everything, so its options are everybody's."""
    compilers = {"njit", "jit", "vectorize", "guvectorize", "stencil", "cfunc"}
    for module in MODULES:
        for node in ast.walk(module.tree):
            used: set[str] = set()
            if isinstance(node, ast.ImportFrom) and node.module == "numba":
                used = compilers & {alias.name for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "numba":
                used = compilers & {node.attr}
            assert not used or module.name == "llmkit.kernels.jit", f"{module.path}: compile with llmkit.kernels.jit"


def test_every_compilation_states_its_options() -> None:
    from llmkit.kernels import jit

    module = next(module for module in MODULES if module.name == "llmkit.kernels.jit")
    calls = [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "njit"
    ]
    assert calls
    for call in calls:
        stated = {keyword.arg for keyword in call.keywords}
        shared = any(
            keyword.arg is None and isinstance(keyword.value, ast.Name) and keyword.value.id == "_OPTIONS"
            for keyword in call.keywords
        )
        assert shared or "fastmath" in stated, ast.unparse(call)
    assert jit._OPTIONS["fastmath"] is False
    assert jit._OPTIONS["nogil"] is True
    assert any("cache" in {keyword.arg for keyword in call.keywords} for call in calls)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    code = (
        "import json, sys\n"
        "from llmkit.cli import run\n"
        f"status = run({arguments!r})\n"
        "print(json.dumps([status, sorted(sys.modules)]), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, loaded = json.loads(result.stderr)
    assert status == 0
    assert result.stdout
    assert not SLOW & {name.split(".")[0] for name in loaded}


def test_importing_llmkit_imports_nothing_slow() -> None:
    code = "import json, sys, llmkit; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not SLOW & {name.split(".")[0] for name in json.loads(result.stdout)}


def test_every_command_is_there() -> None:
    import click

    from llmkit.cli import COMMANDS, cli

    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert isinstance(command, click.Command)
        assert command.name == name
        assert (command.help or "").strip(), f"{name} has no help text"


def test_package_list_equals_the_folders_on_disk() -> None:
    on_disk = {
        ".".join([package, *path.parent.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
    }
    assert sorted(on_disk) == sorted(SETUPTOOLS["packages"])
    for package in on_disk:
        parent = max((known for known in FOLDERS if _inside(package, known)), key=len)
        folder = FOLDERS[parent].joinpath(*package.removeprefix(parent).split(".")[1:])
        assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


@pytest.mark.slow
def test_wheel_holds_every_module_and_no_tests(tmp_path: Path) -> None:
    # Built from a copy, so that setuptools leaves its working files elsewhere, and an old build/ cannot add any.
    source = tmp_path / "source"
    copytree(ROOT, source, ignore=ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "/".join([*package.split("."), *path.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
    }
    assert wanted <= names
    assert "llmkit/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    unexpected = {name for name in names - wanted if ".dist-info/" not in name and not name.endswith("py.typed")}
    assert not unexpected


def test_no_checkpoint_is_named_outside_its_architecture() -> None:
    """Code that knows one checkpoint by name works for that one only; docstrings may give examples."""
    named = re.compile(
        r"smollm2-\d|tinyllama-\d|llama-?\d[.-]\d?-?\d*b|mistral-7b|[\w-]+/[\w.-]*(smollm|tinyllama)", re.IGNORECASE
    )
    for module in MODULES:
        if _inside(module.name, "llmkit.convert.archs"):
            continue
        for text, line in _strings_of_code(module.tree):
            assert not named.search(text), f"{module.path}:{line} names a checkpoint: {text[:80]!r}"


def _strings_of_code(tree: ast.Module) -> Iterator[tuple[str, int]]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value, node.lineno


def test_files_have_one_subject() -> None:
    folders = ["llmkit", "kernels", "quantize", "convert", "tests", "scripts"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".sh", ""}]
    long = {}
    for path in files:
        if path.is_file() and (path.suffix or path.read_bytes().startswith(b"#!")):
            lines = path.read_text(encoding="utf-8").count("\n")
            if lines > MAX_LINES:
                long[str(path.relative_to(ROOT))] = lines
    assert not long, f"over {MAX_LINES} lines; look for the second subject in them: {long}"


def test_nothing_names_a_registry_host_or_a_private_folder() -> None:
    forbidden = re.compile(r"pypi\.org|pythonhosted|registry\.npm|/root/")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    paths = [ROOT / name for name in listed.split("\0") if name] or [module.path for module in MODULES]
    for path in paths:
        if path.is_file() and path.suffix != ".npz" and path != Path(__file__).resolve():
            found = forbidden.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{path.relative_to(ROOT)} holds {found.group()!r}"


def test_the_example_for_contributors_is_the_code() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    examples = [
        block.strip("\n") for block in re.findall(r"^ *```python\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    ]
    family = (ROOT / "convert/archs/smollm3.py").read_text(encoding="utf-8")
    table = (ROOT / "scripts/parities/families.py").read_text(encoding="utf-8")
    assert len(examples) == 2
    parts = [*examples[0].split("\n\n\n"), examples[1]]
    assert [part in family for part in parts] == [True, True, False]
    assert parts[2] in table
