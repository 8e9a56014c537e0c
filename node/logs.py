"""Logs on stderr: text for people, or one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
import sys
import time

from node.plain import clean, clean_line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, text, and the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        content = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "text": record.getMessage(),
        }
        if record.exc_info:
            content["trace"] = self.formatException(record.exc_info)
        return json.dumps(content)


class TextFormatter(logging.Formatter):
    """A line for people: what a stranger wrote neither drives the terminal nor looks like a line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is the library's
        """Return the line of a record, without the trace of an exception."""
        record.message = clean_line(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and the trace of an exception below it."""
        return clean(super().format(record))


def set_up_logs(level: str = "info", as_json: bool = False) -> None:
    """Send logs to stderr; what was set up before is replaced."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter("%(asctime)s %(levelname).1s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Libraries say at these levels what a node says better itself.
    for name in ("aiohttp.access", "aiosqlite", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It writes a trace for each malformed request, so that strangers could fill the disk; what a handler fails with is
    # logged by `server.problems`.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
