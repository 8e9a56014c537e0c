"""Pages of the reference that the program itself knows best: commands, addresses, settings."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec
import typer

from crdtchain.ops import Job
from node.cli.main import app
from node.config import Settings
from node.server.api import ROUTES
from node.server.openapi import Route
from node.worker.policy import Policy

ROOT: Final = Path(__file__).parent.parent
GENERATED: Final = "<!-- Written by `make docs` from the program; changes by hand are lost. -->\n"
CLI_INTRO: Final = """\
Every command takes `--data DIR` (else `CRDTCHAIN_DATA`, else the platform's place for data), `--json` (exactly one JSON
document on stdout; an error is one with `error` and `exit_code`; progress and notes go to stderr), `--debug` (the trace
of an error) and `--help`. Ids may be shortened to a beginning that fits only one. `crdtchain --install-completion`
completes commands in your shell.

## Exit codes

| code | meaning |
| ---: | --- |
| 0 | done |
| 1 | the answer is no (an audit found a fault) |
| 2 | wrong usage or input |
| 3 | no node or peer answers |
| 4 | the ledger rejected it |
| 5 | no sandbox, or the sandboxed program failed |
| 130 | interrupted |
"""
HTTP_INTRO: Final = """\
The local port answers below `/api/v1` to whoever has the token of the data folder (`Authorization: Bearer TOKEN`; the
file `token`). `/openapi.json` describes all of it to programs. Losses are integers of millionths, amounts credits, ids
full CIDs or did:key. An error is a problem document (RFC 9457) with a stable `type`.

Without a token: `/` (the page), `/healthz`, `/metrics` (for Prometheus), `/openapi.json`. The page's own WebSocket is
`/api/v1/sync`. The peer port, which never signs, has `/sync`, `/genesis`, `/blobs/{cid}` and `/blobs/{cid}/list`.
"""
SETTINGS_INTRO: Final = """\
Each setting may stand in `config.toml` in the data folder, in the environment as `CRDTCHAIN_` and its name in capitals,
or be a flag of `crdtchain serve`; the later of these counts. Unknown names are refused, with the nearest known one.
A worker's policy is a file of its own, which `crdtchain work` and `crdtchain serve --work` name; `posters.allow` is the
key `allow` of its table `[posters]`. Defaults are written as they would stand in the file.
"""
COMMON_OPTIONS: Final = {"--data", "--json", "--debug", "--help", "--install-completion", "--show-completion"}


def cell(text: str) -> str:
    """Return a text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def find_commands() -> Iterator[tuple[str, Any]]:
    """Yield each command of the command line with its full name, in the order of --help."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", None)
        if not children:
            yield " ".join(words), command
            return
        if words and command.invoke_without_command:
            yield " ".join(words), command
        for name, child in children.items():
            yield from walk(child, (*words, name))

    return walk(typer.main.get_command(app), ())


def find_choices(parameter: Any) -> tuple[str, ...]:
    """Return the values of an option that has a few named ones, else nothing."""
    kind = parameter.type_descriptor.annotation
    return tuple(kind) if isinstance(kind, type) and issubclass(kind, StrEnum) else ()


def describe_parameter(parameter: Any) -> tuple[str, str]:
    """Return how an option or argument is written, and what it means."""
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    is_argument = not parameter.opts[0].startswith("-")
    value = parameter.metavar or "|".join(find_choices(parameter)) or "VALUE"
    shown = f"`{parameter.metavar or parameter.name.upper()}`" if is_argument else names
    if not is_argument and not parameter.is_flag:
        shown += f" `{value}`"
    notes = [parameter.help or ""]
    if parameter.required and not is_argument:
        notes.append("Required.")
    if getattr(parameter, "multiple", False):
        notes.append("May be given several times.")
    if parameter.default not in (None, False, (), []):
        notes.append(f"Default: {parameter.default}.")
    return cell(shown), cell(" ".join(note for note in notes if note))


def describe_command(name: str, command: Any) -> Iterator[str]:
    """Yield the lines about one command."""
    own = [parameter for parameter in command.params if not COMMON_OPTIONS & set(parameter.opts)]
    arguments = [
        parameter.metavar or parameter.name.upper() for parameter in own if not parameter.opts[0].startswith("-")
    ]
    required = [f"{p.opts[0]} {p.metavar or 'VALUE'}" for p in own if p.opts[0].startswith("-") and p.required]
    yield f"### `crdtchain {name}`\n"
    yield " ".join((command.help or "").split()) + "\n"
    yield "```"
    yield " ".join(["crdtchain", name, *arguments, *required, "[OPTIONS]"])
    yield "```\n"
    if own:
        yield "| | |\n| --- | --- |"
        yield from (f"| {shown} | {text} |" for shown, text in map(describe_parameter, own))
        yield ""
    if command.epilog:
        example = command.epilog.removeprefix("Example: ")
        yield f"Example: `{example}`\n"


def write_cli() -> str:
    """Return docs/reference/cli.md."""
    lines = ["# The command line", GENERATED, CLI_INTRO, "## Commands\n"]
    for name, command in find_commands():
        lines.extend(describe_command(name, command))
    return "\n".join(lines).rstrip() + "\n"


def describe_body(route: Route) -> str:
    """Return what a request's body holds."""
    if route.body is None:
        return f"`{route.body_type}`" if route.body_type else ""
    if route.body is Job:
        return "the terms of the job (docs/protocol), JSON"
    fields = msgspec.structs.fields(route.body)
    return ", ".join(f"`{field.encode_name}`" + ("" if field.required else " (optional)") for field in fields)


def write_http() -> str:
    """Return docs/reference/http.md."""
    rows = [
        f"| `{route.method} {route.path}{'?' + '&'.join(f'{name}=' for name in route.query) if route.query else ''}` "
        f"| {cell(route.summary)} | {cell(describe_body(route))} | {route.status} `{route.answer_type}` |"
        for route in ROUTES
    ]
    table = ["| address | does | body | answers |", "| --- | --- | --- | --- |", *rows]
    return "\n".join(["# HTTP", GENERATED, HTTP_INTRO, *table, ""])


def format_toml(value: object) -> str:
    """Return a setting's value as it would stand in a file."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(format_toml, value))}]"
    return json.dumps(value)


def find_fields(path: Path, defaults: object) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and docstring of each field of a class, of which `defaults` is one without arguments."""
    name = type(defaults).__name__
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    for node, after in zip(found.body, [*found.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            note = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            yield (
                node.target.id.replace("posters_", "posters."),
                format_toml(getattr(defaults, node.target.id)),
                str(note),
            )


def write_settings() -> str:
    """Return docs/reference/settings.md."""
    lines = ["# Settings", GENERATED, SETTINGS_INTRO, "## Of a node\n"]
    for title, path, defaults in (
        ("", "node/config.py", Settings()),
        ("## Of a worker's policy\n", "node/worker/policy.py", Policy()),
    ):
        lines += [title] if title else []
        lines += ["| name | default | meaning |", "| --- | --- | --- |"]
        lines += [
            f"| `{field}` | `{cell(default)}` | {cell(note)} |"
            for field, default, note in find_fields(ROOT / path, defaults)
        ]
        lines += [""]
    return "\n".join(lines)
