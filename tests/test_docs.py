"""The documentation can't rot: what the program has is documented, and what the documentation names is there."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from crdtchain import errors
from crdtchain.ops import Kind
from docs import generate
from docs.reference_pages import find_commands, find_fields
from node.config import Settings
from node.server.api import ROUTES
from node.worker.policy import Policy

ROOT: Final = Path(__file__).parent.parent
DOCS: Final = ROOT / "docs"
SKIPPED: Final = {"node_modules", "dist", "vendor", "__pycache__"}
TEXT_SUFFIXES: Final = {".py", ".md", ".toml", ".txt", ".sh", ".js", ".mjs", ".cjs", ".html", ".css", ".c", ".json", ""}

# Put together here, so that this file does not hold what it looks for.
REGISTRIES: Final = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("crates", "io"),
    )
)
MACHINE_PATHS: Final = ("/" + "work/", "/" + "root/", "/home" + "/user", "/tmp" + "/notes", "." + "pyenv")
NUMBERED_THREAD: Final = re.compile(
    r"\b(?:issue|issues|pull request|PR|GH)[ -]?#?\d+\b|(?<![\w&/])#\d{2,}\b(?![a-f])", re.IGNORECASE
)


def pages() -> list[Path]:
    """Return all pages that people read."""
    return sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "changelog.d").glob("*.md")])


def project_files() -> Iterator[Path]:
    """Yield all files of text that the project has, tracked or about to be."""
    for top in sorted(ROOT.iterdir()):
        if top.name in SKIPPED or (top.name.startswith(".") and top.name != ".ci"):
            continue
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and path.suffix in TEXT_SUFFIXES and not SKIPPED & set(path.parts):
                yield path


def without_code(text: str) -> str:
    """Return a page without its code, where brackets mean something else."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def test_generated_pages_are_fresh() -> None:
    assert [str(path.relative_to(ROOT)) for path in generate.find_stale()] == [], "run `make docs`"


def test_every_kind_of_op_is_documented() -> None:
    text = (DOCS / "protocol" / "README.md").read_text(encoding="utf-8")
    assert [kind.value for kind in Kind if f"| `{kind.value}` |" not in text] == []


def test_every_error_is_documented() -> None:
    text = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    names = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert [name for name in names if f"| `{name}` |" not in text] == []


def rejection_codes() -> set[str]:
    """Return the codes with which the core refuses ops."""
    found = set()
    for path in (ROOT / "crdtchain").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 2:
                code = node.args[0]
                if node.func.id in {"RuleError", "DecodeError", "SignatureError"} and isinstance(code, ast.Constant):
                    found.add(str(code.value))
    return found


def test_every_code_of_rejection_is_documented() -> None:
    text = (DOCS / "protocol" / "README.md").read_text(encoding="utf-8")
    assert {"balance", "shape", "once"} <= rejection_codes()
    assert [code for code in sorted(rejection_codes()) if f"`{code}`" not in text] == []


SCENES: Final = {name: f"tests/unit/test_oracle_{name}.py" for name in ("rules", "witnessing", "settling")}


@cache
def symbols(path: Path) -> frozenset[str]:
    """Return the names of all functions and classes of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )


def guard_rows() -> list[tuple[str, str, str]]:
    """Return rule, code and test of each row of docs/protocol/guards.md."""
    rows = []
    for line in (DOCS / "protocol" / "guards.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("|") and len(cells) >= 3 and not set(cells[0]) <= set("- ") and cells[0] != "rule":
            rows.append((cells[0], cells[1].strip("`"), cells[2].rstrip("| ").strip("`")))
    return rows


def is_there(reference: str) -> bool:
    """Whether a file, and what is named behind ::, exist."""
    name, _, symbol = reference.partition("::")
    path = ROOT / SCENES.get(name, name)
    return path.is_file() and (not symbol or symbol in symbols(path))


def test_what_guards_a_rule_exists() -> None:
    rows = guard_rows()
    assert len(rows) > 80
    assert [reference for _, *cells in rows for reference in cells if reference and not is_there(reference)] == []


def test_every_causal_rule_of_a_kind_is_guarded() -> None:
    named = {code.partition("::")[2] for _, code, _ in guard_rows() if code.startswith("crdtchain/ledger/rules.py")}
    checks = {name for name in symbols(ROOT / "crdtchain/ledger/rules.py") if re.match(r"_(check|claim)_", name)}
    assert sorted(checks - named - {"_check_claim", "_check_beat"}) == []


@pytest.mark.parametrize("words", [REGISTRIES, MACHINE_PATHS], ids=["registries", "paths"])
def test_nothing_names_a_registry_or_a_machine(words: tuple[str, ...]) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in project_files()
        for word in words
        if word in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert found == []


def test_nothing_names_a_numbered_thread() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in project_files()
        if path.suffix in {".md", ".py", ".toml", ".sh"}
        for match in [NUMBERED_THREAD.search(path.read_text(encoding="utf-8"))]
        if match is not None
    ]
    assert found == []


def test_the_readme_names_the_commands_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    named = {
        target for path in pages() for target in re.findall(r"`make ([a-z][a-z-]*)", path.read_text(encoding="utf-8"))
    }
    assert named <= targets
    assert {"demo", "test", "help", "system"} <= targets


def test_every_command_is_documented() -> None:
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    names = [name for name, _ in find_commands()]
    assert {"init", "serve", "job post", "network create"} <= set(names)
    assert [name for name in names if f"`crdtchain {name}`" not in text] == []


def test_every_address_is_documented() -> None:
    text = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    assert [route.path for route in ROUTES if f"`{route.method} {route.path}" not in text] == []


def test_every_setting_is_documented_and_has_a_meaning() -> None:
    text = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    assert [name for name in Settings.__struct_fields__ if f"| `{name}` |" not in text] == []
    for path, defaults in (("node/config.py", Settings()), ("node/worker/policy.py", Policy())):
        fields = list(find_fields(ROOT / path, defaults))
        assert [name for name, _, note in fields if not note] == []
        assert [name for name, default, _ in fields if tomllib.loads(f"x = {default}") is None] == []


def test_an_option_with_named_values_is_documented_with_them() -> None:
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    assert r"| `--scenario` `honest\|cheat\|offline` |" in text


def commands_in(text: str) -> Iterator[str]:
    """Yield the words of each command of ours in a page's shell blocks, behind the program's name."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            match = re.match(r"\s*(?:CRDTCHAIN_DATA=\S+ )?(?:crdtchain|alice|bob|carol) ([a-z].*)", line)
            if match:
                yield match[1]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_that_pages_show_exist_with_their_options(page: Path) -> None:
    commands = dict(find_commands())
    wrong = []
    for shown in commands_in(page.read_text(encoding="utf-8")):
        words = shown.split(" #")[0].split()
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in commands), None)
        known = set() if name is None else {option for parameter in commands[name].params for option in parameter.opts}
        used = {word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)}
        if name is None or not used <= known:
            wrong.append(shown)
    assert wrong == []
