"""Texts of strangers for a terminal: what drives it, or turns what one reads around, becomes visible and harmless.

Titles, names, reasons that a peer gives: anybody writes them, and a terminal obeys what they contain. `clean` is for
text that goes out as it is (errors, logs), `PlainConsole` for all that rich prints, `clean_json` for JSON documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

SHOWN_AS: Final = "\N{REPLACEMENT CHARACTER}"
_CONTROLS: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f"
"""C0 and C1 without tab and line feed: among them ESC, CSI, and the carriage return that overwrites a line."""
_MISLEADING: Final = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
"""Marks of direction, separators of lines, and halves of surrogates, which no terminal can be sent."""
_BAD: Final = re.compile(f"[{_CONTROLS}{_MISLEADING}]")
_BAD_LINE: Final = re.compile(f"[\n\t{_CONTROLS}{_MISLEADING}]")


def clean(text: str) -> str:
    """Return a text that can neither drive a terminal nor read otherwise than it is."""
    return _BAD.sub(SHOWN_AS, text)


def clean_line(text: str) -> str:
    """Return a text, cleaned, that stays on its line."""
    return _BAD_LINE.sub(SHOWN_AS, text)


def clean_json(document: str) -> str:
    """Return a JSON document that means the same, with the characters in question written as escapes."""
    return _BAD.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


class PlainConsole(Console):
    """A console of rich that cleans every text, and takes no text for markup."""

    def __init__(self, **settings: Any) -> None:
        """`settings` are those of rich's console."""
        super().__init__(**{"highlight": False, "soft_wrap": True, "emoji": False, "markup": False, **settings})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the segments of what is printed; control segments are rich's own and stay."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else clean(text), style, control)
