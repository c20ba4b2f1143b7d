"""The structure of the package: one name one thing, no import circle, imports point downward, every public name
documented.
"""

import ast
import importlib
import importlib.util
import inspect
import re
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import star

PACKAGE = Path(star.__file__).parent
FILES = {".".join(("star", *p.relative_to(PACKAGE).with_suffix("").parts)): p for p in PACKAGE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}

# From the bottom to the top; what stands in one line may import each other, module by module without a circle.
LAYERS = [
    ["errors", "fields", "turns"],
    ["liv"],
    ["genome"],
    ["cost", "model"],
    ["data", "store", "engine"],
    ["training"],
    ["config", "candidate"],
    ["assess"],
    ["surrogate"],
    ["run", "refined", "search", "refine"],
    ["evidence"],
    ["report", "export"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SHARED = {"show"}  # a CLI verb and the report that it prints


def imports(path: Path) -> set[str]:
    """Modules of STAR that a file imports, also inside functions and for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "star":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "star"}
    return found - {"star"}  # the package itself: __version__ and the lazy names


def test_no_two_modules_have_one_name():
    counts = Counter(path.stem for path in MODULES.values() if path.stem != "__init__")
    assert {name for name, count in counts.items() if count > 1} <= SHARED


def test_no_import_circle():
    graph = {name: imports(path) - {name} for name, path in MODULES.items() if path.stem != "__init__"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_imports_point_downward():
    assert {name.split(".")[1] for name in MODULES if "." in name} - set(LEVEL) == {"__main__"}
    for name, path in MODULES.items():
        if name in ("star", "star.__main__"):
            continue
        above = [other for other in imports(path) if LEVEL[other.split(".")[1]] > LEVEL[name.split(".")[1]]]
        assert not above, f"{name} imports {', '.join(above)} from a layer above it"


NOT_IMPORTED = {
    "star.__main__",
    "star.export.standalone",
}  # the second is the end of every exported file, never imported
if importlib.util.find_spec("triton") is None:
    NOT_IMPORTED.add("star.liv.triton_kernels")


@pytest.mark.parametrize("name", sorted(set(MODULES) - NOT_IMPORTED))
def test_public_names_are_documented(name):
    """Classes and functions have a docstring; a method has one, or overrides one that has."""
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    missing = []
    for node in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                if not inspect.getdoc(getattr(getattr(module, node.name), method.name)):
                    missing.append(f"{node.name}.{method.name}")
    assert not missing, f"{name}: no docstring for {', '.join(missing)}"


OF_A_PLATFORM = {"triton"}


def test_no_test_is_skipped_for_a_package_that_the_test_command_does_not_install():
    """A test is skipped for a platform only; what it imports is required by the package or its extra `test`."""
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["test"], "pandas"]  # of statsmodels
    installed = {re.match(r"[\w-]+", requirement)[0] for requirement in needed}
    for path in sorted((root / "tests").rglob("*.py")):
        wanted = re.findall(r'importorskip\("(\w+)', path.read_text(encoding="utf-8"))
        assert set(wanted) <= installed | OF_A_PLATFORM, path
