"""Write what the documentation takes from the program; `make docs` runs it, tests/test_docs.py finds what is stale.

python -m docs.generate            write docs/architecture.md's list of modules and docs/reference/
python -m docs.generate --check    write nothing; exit 1 and name what would change
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from docs.reference_pages import GENERATED, write_cli, write_http, write_settings
from node.counters import CATALOGUE, DROPS, Drop

DOCS: Final = Path(__file__).parent
ROOT: Final = DOCS.parent
ERRORS_INTRO: Final = """\
Every exception of the library and the program is in one tree; the class shows whose fault it is. The command line shows
one sentence and ends with one of its [exit codes](cli.md#exit-codes); `--debug` adds the trace."""
LIMITS_INTRO: Final = """\
Units are in the names. The bounds of ops and bodies are rules of the protocol, the same everywhere; those of frames,
waiting ops, connections and time ahead are this program's own: they delay, hold or disconnect, and never make an op
invalid."""

METRICS_INTRO: Final = """\
`/metrics` on the local port answers in the text format of Prometheus; each name comes with its description. These are
the counters of what limits did. All start at 0 with the node, and all values of a label are shown from the start."""


def first_line(path: Path) -> str:
    """Return the first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def module_rows(folder: Path) -> Iterator[str]:
    """Yield a table row for each module directly in a folder."""
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"| `{path.relative_to(ROOT).as_posix()}` | {first_line(path)} |"


def list_modules() -> str:
    """Return the tables of all modules, one for each folder."""
    parts: list[str] = []
    for package in ("crdtchain", "node"):
        folders = [ROOT / package, *sorted(path for path in (ROOT / package).rglob("*") if path.is_dir())]
        for folder in folders:
            rows = list(module_rows(folder))
            if rows:
                parts += [f"\n### `{folder.relative_to(ROOT).as_posix()}/`\n", "| module | is |\n| --- | --- |", *rows]
    return "\n".join(parts) + "\n"


def write_architecture() -> str:
    """Return docs/architecture.md with its list of modules made anew."""
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    begin, end = "<!-- modules:begin -->", "<!-- modules:end -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{list_modules()}\n{end}{tail}"


def class_rows(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield name, base and first sentence of each class of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            base = ", ".join(ast.unparse(base) for base in node.bases)
            yield node.name, base, " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def write_errors() -> str:
    """Return docs/reference/errors.md: the tree of exceptions."""
    tree = ast.parse((ROOT / "crdtchain" / "errors.py").read_text(encoding="utf-8"))
    rows = [f"| `{name}` | {f'`{base}`' if base else ''} | {text} |" for name, base, text in class_rows(tree)]
    return "\n".join(
        [
            "# Errors",
            GENERATED,
            ERRORS_INTRO,
            "",
            "| class | is a | meaning |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def constants(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and docstring of each constant of a module."""
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or node.value is None or not isinstance(node.target, ast.Name):
            continue
        note = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            note = " ".join(after.value.value.split())
        yield node.target.id, ast.unparse(node.value), note


def write_limits() -> str:
    """Return docs/reference/limits.md: every bound with its value."""
    tree = ast.parse((ROOT / "crdtchain" / "limits.py").read_text(encoding="utf-8"))
    rows = [f"| `{name}` | `{value.replace('**', '^')}` | {note} |" for name, value, note in constants(tree)]
    return "\n".join(
        [
            "# Limits",
            GENERATED,
            LIMITS_INTRO,
            "",
            "| name | value | note |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def write_metrics() -> str:
    """Return docs/reference/metrics.md: every counter, and every reason for which a connection ends."""
    rows = [
        f"| `{counter.name}` | {f'`{counter.label}`: ' if counter.label else ''}"
        f"{', '.join(f'`{value}`' for value in counter.values if value and counter is not DROPS)} "
        f"| {counter.text} |"
        for counter in CATALOGUE
    ]
    tree = ast.parse((ROOT / "node" / "counters.py").read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == Drop.__name__]
    texts = [ast.literal_eval(node.value) for node in found.body[1:] if isinstance(node, ast.Expr)]
    reasons = [f"| `{drop.value}` | {text} |" for drop, text in zip(Drop, texts, strict=True)]
    return "\n".join(
        [
            "# Metrics",
            GENERATED,
            METRICS_INTRO,
            "",
            "| counter | label | counts |",
            "| --- | --- | --- |",
            *rows,
            "",
            "## Why connections end",
            "",
            "| `reason` of `crdtchain_drops_total` | meaning |",
            "| --- | --- |",
            *reasons,
            "",
        ]
    )


PAGES: Final[dict[Path, Callable[[], str]]] = {
    DOCS / "architecture.md": write_architecture,
    DOCS / "reference" / "cli.md": write_cli,
    DOCS / "reference" / "http.md": write_http,
    DOCS / "reference" / "settings.md": write_settings,
    DOCS / "reference" / "errors.md": write_errors,
    DOCS / "reference" / "limits.md": write_limits,
    DOCS / "reference" / "metrics.md": write_metrics,
}


def find_stale() -> list[Path]:
    """Return the pages that differ from what the program says now."""
    return [path for path, write in PAGES.items() if not path.exists() or path.read_text(encoding="utf-8") != write()]


def main() -> int:
    """Write the pages, or with --check name the stale ones and return 1."""
    stale = find_stale()
    for path in stale:
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {path.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            path.write_text(PAGES[path](), encoding="utf-8")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
