"""What keeps the core portable and the code readable, checked over the syntax tree of every module.

The import-linter contracts in pyproject.toml check who may import whom; here is what they can't see.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
FUNCTION_LINES_MAX: Final = 60
MODULE_LINES_MAX: Final = 600

CORE_IMPORTS: Final = frozenset(
    (
        "__future__",
        "abc",
        "array",
        "base64",
        "bisect",
        "cbor2",
        "collections",
        "crdtchain",
        "dataclasses",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "msgspec",
        "operator",
        "re",
        "struct",
        "typing",
    )
)
"""Pure parts of the standard library, our own modules, and the two libraries that also run in a browser."""
FORBIDDEN_CALLS: Final = frozenset({"hash", "id", "open", "print", "input", "eval", "exec", "__import__"})


def modules(package: str) -> list[Path]:
    """Return all modules of a package, sorted."""
    return sorted((ROOT / package).rglob("*.py"))


def core_modules() -> list[Path]:
    """Return the modules that must run anywhere: the library without its adapters."""
    return [path for path in modules("crdtchain") if "adapters" not in path.relative_to(ROOT).parts]


@cache
def tree(path: Path) -> ast.Module:
    """Parse a module."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, node: ast.AST) -> str:
    """Name a place as file:line."""
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yield each import of a module with the full name that it imports."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module or "."


def test_the_core_imports_only_what_runs_anywhere() -> None:
    found = [
        f"{where(path, node)} imports {name}"
        for path in core_modules()
        for node, name in imports(path)
        if name.split(".")[0] not in CORE_IMPORTS or name.startswith("crdtchain.adapters")
    ]
    assert found == []


def test_the_library_never_imports_the_program() -> None:
    found = [
        where(path, node)
        for path in modules("crdtchain")
        for node, name in imports(path)
        if name.split(".")[0] == "node"
    ]
    assert found == []


def find_impure(node: ast.AST) -> str | None:
    """Return what about a node of the syntax tree could differ between two machines, or wait, or look outside."""
    match node:
        case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
            return "async"
        case ast.Constant(value=float() | complex()):
            return "a float"
        case ast.Name(id="float"):
            return "float"
        case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
            return "true division"
        case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
            return f"{name}()"
    return None


def test_the_core_has_no_floats_no_async_and_no_way_outside() -> None:
    found = [
        f"{where(path, node)} has {what}"
        for path in core_modules()
        for node in ast.walk(tree(path))
        if (what := find_impure(node)) is not None
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("async def f(): pass", "async"),
        ("x = 0.5", "a float"),
        ("def f(x: float): pass", "float"),
        ("x = a / b", "true division"),
        ("a /= b", "true division"),
        ("x = hash(y)", "hash()"),
        ("print('x')", "print()"),
    ],
)
def test_the_check_of_the_core_finds_each_impurity(source: str, what: str) -> None:
    assert what in [find_impure(node) for node in ast.walk(ast.parse(source))]


def test_the_check_of_the_core_accepts_integers() -> None:
    assert {find_impure(node) for node in ast.walk(ast.parse("def f(x: int) -> int: return x // 2 + op.id"))} == {None}


@pytest.mark.parametrize("package", ["crdtchain", "node"])
def test_functions_are_short(package: str) -> None:
    found = [
        f"{where(path, node)} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in modules(package)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert found == []


@pytest.mark.parametrize("package", ["crdtchain", "node"])
def test_modules_are_short(package: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(package)}
    assert [f"{path.relative_to(ROOT)}: {n}" for path, n in lengths.items() if n > MODULE_LINES_MAX] == []


@pytest.mark.parametrize("package", ["crdtchain", "node"])
def test_every_module_says_what_it_is(package: str) -> None:
    assert [str(path.relative_to(ROOT)) for path in modules(package) if not ast.get_docstring(tree(path))] == []


@pytest.mark.parametrize("package", ["crdtchain", "node"])
def test_every_module_is_named_in_the_architecture(package: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = {path: path.relative_to(ROOT).as_posix() for path in modules(package) if path.name != "__init__.py"}
    assert [name for name in names.values() if f"`{name}`" not in text] == [], "run `make docs`"


def test_the_architecture_names_no_module_that_is_gone() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {word for line in text.splitlines() for word in line.split("`")[1::2] if word.endswith(".py")}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == [], "run `make docs`"
