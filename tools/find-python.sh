#!/bin/sh
# Print a Python of at least 3.11 that can make virtual environments, or say what is missing.
for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3 python; do
    [ -n "$candidate" ] || continue
    command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys, venv, ensurepip, sqlite3, ssl; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        command -v "$candidate"
        exit 0
    fi
done
cat >&2 <<'TEXT'
error: no Python of at least 3.11 with venv was found.
       On Debian or Ubuntu: apt-get install python3 python3-venv (or `make system` as root); elsewhere see your system's manual.
       Is it in an unusual place? make PYTHON=/path/to/python3 …
TEXT
exit 1
