"""Build `trainer.wasm`, the classifier that ships with crdtchain, from its C source.

    python -m node.worker.sandbox.wasm_build            rebuild, compare, print the SHA-256
    python -m node.worker.sandbox.wasm_build --write    also replace the committed module

Theory: the compiler is the one in PyPI's `ziglang` wheel, so a build needs no system package. The module has no
imports, no names, no debug sections and no paths: the same source and compiler give the same bytes on every machine,
and `TRAINER_SHA256` pins them. After a change to the source, build with `--write` and put the new digest here.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from crdtchain.errors import UsageError

ZIG_VERSION = "0.17.1"
"""The compiler that gives the pinned digest; another version may give other, equally valid bytes."""

TRAINER_SHA256 = "38bd199e79fa97d1194b74802c5bded05700435441fa4a468d8eb77415e455e9"
"""SHA-256 of the committed module, in hex."""

SOURCE = Path(__file__).parent / "wasm_src" / "trainer.c"
MODULE = Path(__file__).parents[3] / "examples" / "digits-wasm" / "trainer.wasm"

FLAGS = (
    "-target", "wasm32-freestanding", "-mcpu=mvp+simd128+bulk_memory+nontrapping_fptoint+sign_ext",
    "-std=c17", "-O3", "-ffreestanding", "-nostdlib", "-fno-math-errno", "-ffp-contract=off", "-fno-sanitize=all",
    "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-g0",
    "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,--initial-memory=1048576", "-Wl,-z,stack-size=65536",
)  # fmt: skip


def build_module(source: Path = SOURCE) -> bytes:
    """Compile a C file to a WebAssembly module without imports.

    Raises:
        UsageError: there is no compiler, or it refuses the source; the text has its words.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "module.wasm"
        command = [sys.executable, "-m", "ziglang", "cc", *FLAGS, "-o", target.name, str(source)]
        caches = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}  # so that nothing old is reused
        done = subprocess.run(command, cwd=folder, env=os.environ | caches, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not target.exists():
            raise UsageError(f"the compiler refused {source.name} (is `ziglang` installed?): {done.stderr.strip()}")
        return target.read_bytes()


def main(arguments: list[str]) -> int:
    """Rebuild, print the digest, and say whether it is the pinned one."""
    module = build_module()
    digest = hashlib.sha256(module).hexdigest()
    print(f"{digest}  {len(module)} bytes")
    if "--write" in arguments:
        MODULE.write_bytes(module)
    if digest != TRAINER_SHA256:
        print(f"not the pinned digest {TRAINER_SHA256}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
