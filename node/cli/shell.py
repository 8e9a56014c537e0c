"""What all commands share: the options that each takes, how they speak, and how faults become exit codes.

Results go to stdout, everything else to stderr. With `--json` stdout has exactly one JSON document. A fault is one
sentence; `--debug` adds the trace. Exit codes:

    0 done · 1 the answer is no · 2 wrong usage or input · 3 no node or peer answers · 4 the ledger rejected it
    5 no sandbox, or the sandboxed program failed · 130 interrupted
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer
from rich.console import Console

from crdtchain.errors import CrdtchainError, InvalidOpError, PeerError, SandboxError, UsageError
from node.config import default_data_dir
from node.plain import PlainConsole, clean, clean_json

OK: Final = 0
NO: Final = 1
USAGE: Final = 2
NO_PEER: Final = 3
REJECTED: Final = 4
SANDBOX: Final = 5
INTERRUPTED: Final = 130

T = TypeVar("T")

# Typer brings its own copy of click in some versions; this is the base of its errors in all of them.
ClickError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


class AnswerNoError(CrdtchainError):
    """A question was answered with no: nothing is wrong with the program."""


@dataclass(frozen=True, slots=True)
class Shell:
    """One call of the command line.

    Attributes:
        data: the data folder.
        as_json: print one JSON document.
        debug: show traces.
    """

    data: Path
    as_json: bool
    debug: bool

    @property
    def err(self) -> Console:
        """Where notes, progress and errors go."""
        return PlainConsole(stderr=True)

    @property
    def out(self) -> Console:
        """Where results for people go."""
        return PlainConsole()

    def note(self, text: str) -> None:
        """Tell something on the way."""
        self.err.print(text, markup=False)

    def show(self, value: object, human: Callable[[Console], None] | str) -> None:
        """Print a result: the JSON document, or what people read."""
        if self.as_json:
            write_document(value)
        elif isinstance(human, str):
            self.out.print(human, markup=False)
        else:
            human(self.out)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run asynchronous work to its end."""
        return asyncio.run(work)


@asynccontextmanager
async def end_on_signals(*numbers: signal.Signals) -> AsyncIterator[None]:
    """Let each of these signals cancel the task that runs this block, also one that this process was told to ignore.

    A shell starts what runs in the background with SIGINT ignored, and Python then leaves it so.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def write_document(value: object, indent: int | None = 2) -> None:
    """Write the one JSON document of this call."""
    sys.stdout.write(clean_json(json.dumps(value, ensure_ascii=False, indent=indent)) + "\n")
    sys.stdout.flush()
    _globals["awaits_document"] = False


def expect_document(arguments: Iterable[str]) -> None:
    """Remember whether these words ask for a JSON document, which an error has to be then, even one in the words."""
    _globals["awaits_document"] = "--json" in arguments


DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="The data folder; else CRDTCHAIN_DATA, else the platform's own place."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")]
_COMMON: Final = (("data", DataOption, None), ("as_json", JsonOption, False), ("debug", DebugOption, False))
_globals: dict[str, Any] = {}
"""What was given before the command's name."""


def set_globals(data: Path | None, as_json: bool, debug: bool) -> None:
    """Remember the options given before the command's name."""
    _globals.update(data=data, as_json=as_json, debug=debug)


def make_shell(data: Path | None = None, as_json: bool = False, debug: bool = False) -> Shell:
    """Join the options given before and after the command's name."""
    folder = data or _globals.get("data") or default_data_dir()
    shell = Shell(folder, as_json or _globals.get("as_json", False), debug or _globals.get("debug", False))
    _globals["debug"] = shell.debug
    return shell


def command(app: typer.Typer, name: str, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function as a command: its first argument is the `Shell`, its docstring the help.

    `example` is shown at the end of the help, without the program's name.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = list(inspect.signature(function).parameters.values())[1:]

        @functools.wraps(function)
        def call(**values: Any) -> None:
            shell = make_shell(*(values.pop(name) for name, _, _ in _COMMON))
            function(shell, **values)

        parameters = [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
        common = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
            for name, hint, default in _COMMON
        ]
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        call.__signature__ = inspect.Signature([*keyword_only, *common])  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in [*keyword_only, *common]}
        del call.__wrapped__  # typer would look through to the function without the options
        app.command(name, epilog=f"Example: crdtchain {example}")(call)
        return function

    return add


def make_group(app: typer.Typer, name: str, help: str) -> typer.Typer:
    """Add a group of commands."""
    group = typer.Typer(help=help, no_args_is_help=True, rich_markup_mode="markdown")
    app.add_typer(group, name=name)
    return group


def find_exit_code(error: BaseException) -> int:
    """Return the exit code that tells whose fault an error is."""
    match error:
        case AnswerNoError():
            return NO
        case InvalidOpError():
            return REJECTED
        case PeerError():
            return NO_PEER
        case SandboxError():
            return SANDBOX
        case KeyboardInterrupt() | asyncio.CancelledError():
            return INTERRUPTED
        case _:
            return USAGE


def report(error: BaseException) -> int:
    """Say in one sentence on stderr what went wrong, and as the document of `--json`; returns the exit code."""
    if isinstance(error, ClickError):
        return _report_click(error)
    if isinstance(error, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        return _answer("interrupted", INTERRUPTED)
    if _globals.get("debug") or os.environ.get("CRDTCHAIN_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, CrdtchainError):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"{error.filename or 'the system'}: {error.strerror or error}"
    else:
        text = f"this is a bug in crdtchain ({type(error).__name__}: {error}); run the command again with --debug"
    return _answer(_say(text), find_exit_code(error))


def _say(text: str) -> str:
    """Print a fault as one sentence; returns it."""
    sentence = clean(" ".join(text.split())).rstrip(".")
    sentence += "" if sentence.endswith("?") else "."
    print(f"error: {sentence}", file=sys.stderr)
    return sentence


def _answer(text: str, code: int) -> int:
    """Make an error the document of `--json` if there has been none; returns its exit code."""
    if _globals.get("awaits_document"):
        write_document({"error": text, "exit_code": code})
    return code


def _report_click(error: Exception) -> int:
    text: str = error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError":
        # A group called without a command has shown its help, or carries it.
        if text:
            print(text, file=sys.stderr)
        return _answer("name a command", USAGE)
    text = text.replace(": Value error, ", ": ").rstrip(".")
    return _answer(_say(f"{text}{'' if text.endswith('?') else '.'} See --help."), USAGE)


def find_one(text: str, known: Iterable[str], what: str) -> str:
    """Return the one known id that begins with a text, `did:key:` aside.

    Raises:
        UsageError: none does, or several.
    """
    names = sorted(set(known))
    if text in names:
        return text
    found = [name for name in names if text and (name.startswith(text) or name.rpartition(":")[2].startswith(text))]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{text} fits {len(found)} {what}s, such as {found[0]} and {found[1]}: give more of it")
    raise UsageError(f"there is no {what} {text} here; give a full id, or its beginning")


def shorten(text: str) -> str:
    """Return the beginning of an id, enough for people and for `find_one`."""
    return text.rpartition(":")[2][:18]
