"""The process in which one WebAssembly program runs, and dies with it.

Theory of operation. The parent (wasm.py) starts this with an empty environment, writes one JSON line on standard
input and keeps it open; when it closes, for whatever reason, this process exits. Messages to the parent are JSON
lines on standard output: `running` (the wall clock starts), `progress`, and one `result`, which the bytes of the
files follow.

1. A module with any import is refused before it is instantiated: the program can compute, and nothing else.
2. Compiled code is read from the cache only when its digest matches; it is keyed by module, engine and settings.
3. Limits lie in layers: the engine's (memory, tables, stack, an epoch at the deadline), this process's (rlimits), and
   the parent's timer and SIGKILL.
4. Everything after the inputs are read happens without the right to create a byte in a file.

Imports little, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import wasmtime

from node.worker.sandbox.wasm_frame import (
    ALIGNMENT,
    FRAME_BYTES_MAX,
    Entry,
    FrameError,
    Kind,
    compute_frame_size,
    decode_frame,
    encode_frame,
    encode_int,
)

CONFIG_TAG = "v1"
"""Part of the cache's key: change it whenever `make_engine` changes."""

MODULE_BYTES_MAX = 8 * 2**20
FAILURE_BYTES_MAX = 4096
PROGRESS_EVERY_S = 0.1
HOST_MEMORY_BYTES = 2**30
"""What this process may use beside the program's memory and copies of inputs and outputs: interpreter and engine."""
COMPILER_MEMORY_BYTES = 2 * 2**30
"""What this process may use while it compiles a module."""

DONE, MORE, NO_MEMORY = 0, 1, -2

SIGNATURES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "alloc": (("i32",), ("i32",)),
    "train": (("i32", "i32"), ("i32",)),
    "predict": (("i32", "i32"), ("i32",)),
    "step": ((), ("i32",)),
    "finish": ((), ("i32",)),
    "loss": ((), ("f64",)),
    "output_ptr": ((), ("i32",)),
    "output_len": ((), ("i32",)),
}
REQUIRED = ("alloc", "output_ptr", "output_len")


class StopError(Exception):
    """The run ends with this status (a value of base.Status) and reason."""

    def __init__(self, status: str, reason: str, code: int | None = None, log: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.code, self.log = status, reason, code, log


def send(message: dict[str, Any], stream: BinaryIO) -> None:
    """Write one JSON line to the parent."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def exit_with_parent() -> NoReturn:
    """Wait for the end of standard input, which is the end of the parent's interest."""
    while os.read(0, 4096):
        pass
    os._exit(3)


def limit_compiler() -> None:
    """Bound the memory that compiling a stranger's module may take; lifted when the program's own limit is known."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (COMPILER_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    with contextlib.suppress(OSError):  # if memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_process(data_bytes: int, seconds: int) -> None:
    """Set the process's own limits; where the platform has none, the parent's timer remains."""
    try:
        import resource
    except ImportError:  # not a POSIX system
        return

    def lower(kind: int, value: int) -> None:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))

    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_FSIZE, 0)
    lower(resource.RLIMIT_NOFILE, 16)
    lower(resource.RLIMIT_DATA, data_bytes)
    lower(resource.RLIMIT_CPU, seconds)


def make_engine() -> wasmtime.Engine:
    """An engine with deterministic features only: no threads, no relaxed SIMD, canonical NaNs."""
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.cranelift_nan_canonicalization = True
    config.memory_init_cow = False  # it writes an in-memory file, which the file size limit forbids
    config.parallel_compilation = False
    config.wasm_threads = False
    config.shared_memory = False
    config.wasm_relaxed_simd = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_custom_page_sizes = False
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_tail_call = False
    config.wasm_exceptions = False
    config.wasm_stack_switching = False
    config.wasm_component_model = False
    config.wasm_wide_arithmetic = False
    return wasmtime.Engine(config)


def read_cached(engine: wasmtime.Engine, path: Path) -> wasmtime.Module | None:
    """Load compiled code if it is there and whole; the engine itself checks that it fits this machine."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(stored[32:]).digest() != stored[:32]:
        return None
    with contextlib.suppress(OSError):  # the parent removes what was used longest ago
        os.utime(path)
    try:
        return wasmtime.Module.deserialize(engine, stored[32:])
    except wasmtime.WasmtimeError:
        return None


def load_module(engine: wasmtime.Engine, request: dict[str, Any]) -> wasmtime.Module:
    """Compile a module, or take its compiled code from the cache; refuse it if it is none or has imports."""
    module_path, cache = Path(request["module"]), Path(request["cache"])
    if module_path.stat().st_size > MODULE_BYTES_MAX:
        raise StopError("job_error", f"The module is larger than {MODULE_BYTES_MAX} bytes.")
    code = module_path.read_bytes()
    key = f"{hashlib.sha256(code).hexdigest()}-{request['version']}-{CONFIG_TAG}.compiled"
    module = read_cached(engine, cache / key)
    if module is None:
        try:
            module = wasmtime.Module(engine, code)
        except wasmtime.WasmtimeError as error:
            raise StopError("job_error", f"The module is not valid WebAssembly: {first_line(str(error))}") from error
        artifact = bytes(module.serialize())
        part = cache / f"{key}.{os.getpid()}.part"
        with contextlib.suppress(OSError):  # a cache that can't be written costs time, nothing else
            part.write_bytes(hashlib.sha256(artifact).digest() + artifact)
            part.replace(cache / key)
    if module.imports:
        names = ", ".join(f"{i.module}.{i.name}" for i in module.imports[:5])
        raise StopError("job_error", f"The module has imports ({first_line(names)}); a job's module must have none.")
    return module


def first_line(text: str) -> str:
    """The first line of a stranger's text, printable and short."""
    line = text.strip().split("\n", 1)[0][:300]
    return "".join(c if c.isprintable() else "?" for c in line)


class Program:
    """One instance of a module, and the calls a run makes into it."""

    def __init__(self, engine: wasmtime.Engine, module: wasmtime.Module, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.store = wasmtime.Store(engine)
        self.store.set_limits(memory_size=memory_bytes, table_elements=65536, instances=1, tables=4, memories=1)
        self.store.set_epoch_deadline(1)
        self.memory: wasmtime.Memory | None = None
        try:
            instance = wasmtime.Instance(self.store, module, [])
        except wasmtime.Trap as trap:
            raise self.explain(trap) from trap
        except wasmtime.WasmtimeError as error:
            raise StopError("oom", f"The module asks for more than its limits: {first_line(str(error))}") from error
        exports = instance.exports(self.store)
        memory = exports.get("memory")
        if not isinstance(memory, wasmtime.Memory):
            raise StopError("job_error", "The module doesn't export its memory as `memory`.")
        self.memory = memory
        self.functions = {name: self.find_function(exports.get(name), name) for name in SIGNATURES}

    def find_function(self, export: object, name: str) -> wasmtime.Func | None:
        """Take an export after checking its type; None if it is absent and optional."""
        if export is None and name not in REQUIRED:
            return None
        if isinstance(export, wasmtime.Func):
            kind = export.type(self.store)
            found = tuple(map(str, kind.params)), tuple(map(str, kind.results))
            if found == SIGNATURES[name]:
                return export
        wanted = " -> ".join(f"({', '.join(part)})" for part in SIGNATURES[name])
        raise StopError("job_error", f"The module must export the function `{name}` with type {wanted}.")

    def has(self, name: str) -> bool:
        """Whether the module exports this function."""
        return self.functions[name] is not None

    def call(self, name: str, *arguments: int) -> Any:
        """Call an export; a trap ends the run."""
        function = self.functions[name]
        if function is None:
            raise StopError("job_error", f"The module doesn't export `{name}`.")
        try:
            return function(self.store, *arguments)
        except wasmtime.Trap as trap:
            raise self.explain(trap) from trap

    def explain(self, trap: wasmtime.Trap) -> StopError:
        """Say what a trap means: out of time, out of memory, or a crash."""
        code = trap.trap_code
        if code == wasmtime.TrapCode.INTERRUPT:
            return StopError("timeout", "The program was still running at its wall limit.")
        if self.memory is not None and self.get_memory_size() >= self.memory_bytes - self.memory_bytes // 8:
            return StopError("oom", "The program trapped with its memory at the limit.")
        name = code.name.lower().replace("_", " ") if code is not None else "unknown"
        return StopError("crashed", f"The program trapped: {name}.")

    def get_memory_size(self) -> int:
        """Bytes of the program's memory; it never shrinks, so this is its peak."""
        return self.memory.data_len(self.store) if self.memory is not None else 0

    def place(self, frame: bytearray) -> int:
        """Copy the input frame into the program's memory and return where it is."""
        memory = self.memory
        assert memory is not None
        at = self.call("alloc", len(frame)) & 0xFFFFFFFF
        if at == 0:
            raise StopError("oom", f"The program found no room for its {len(frame)} bytes of input.")
        if at % ALIGNMENT or at + len(frame) > memory.data_len(self.store):
            raise StopError("job_error", "The module's `alloc` gave an address that is unaligned or out of bounds.")
        memory.write(self.store, frame, at)
        return int(at)

    def read_output(self, bytes_max: int, keep_bytes: int = 2**32) -> bytearray:
        """Copy what the program gives as its output, or only its first `keep_bytes`."""
        memory = self.memory
        assert memory is not None
        at = self.call("output_ptr") & 0xFFFFFFFF
        size = self.call("output_len") & 0xFFFFFFFF
        if size > bytes_max:
            raise StopError("output_limit", f"The output has {size} bytes, more than the {bytes_max} granted.")
        if at + size > memory.data_len(self.store):
            raise StopError("bad_output", "The output lies outside the program's memory.")
        return memory.read(self.store, at, at + min(size, keep_bytes))

    def check_code(self, code: int) -> int:
        """Pass 0 and 1 on; anything else is the program's own failure, whose text is the output."""
        if code in (DONE, MORE):
            return code
        if code == NO_MEMORY:
            raise StopError("oom", "The program says that its memory is too small.", code)
        text = self.read_output(2**32, FAILURE_BYTES_MAX).decode(errors="replace")
        raise StopError("job_error", f"The program failed: {first_line(text) or f'code {code}'}", code, text)


def read_entries(request: dict[str, Any]) -> list[Entry]:
    """Read the files and values that the parent names, after checking that they fit in the program's memory."""
    sizes = [
        (len(name.encode()), Path(value).stat().st_size if kind == Kind.FILE else len(str(value).encode()))
        for kind, name, value in request["entries"]
    ]
    if compute_frame_size(sizes) > min(request["memory_bytes"], FRAME_BYTES_MAX):
        raise StopError("oom", "The inputs are larger than the memory limit, or than 2 GiB.")
    entries = []
    for kind, name, value in request["entries"]:
        match Kind(kind):
            case Kind.FILE:
                data = Path(value).read_bytes()
            case Kind.TEXT:
                data = value.encode()
            case Kind.INT | Kind.BOOL:
                data = encode_int(value)
        entries.append(Entry(Kind(kind), name, data))
    return entries


def drive(program: Program, request: dict[str, Any], frame: bytearray, stream: BinaryIO) -> None:
    """Start the mode's function, step to the end or to the deadline, and finish."""
    stop_at = time.monotonic() + request["seconds"] - request["grace_s"]
    at, size = program.place(frame), len(frame)
    frame.clear()
    code = program.check_code(program.call(request["mode"], at, size))
    epoch, told_at = 0, -math.inf
    while code == MORE:
        code = program.check_code(program.call("step"))
        epoch += 1
        now = time.monotonic()
        if program.has("loss") and (code == DONE or now - told_at >= PROGRESS_EVERY_S):
            loss = program.call("loss")
            if math.isfinite(loss):
                send({"type": "progress", "epoch": epoch, "loss": loss}, stream)
            told_at = now
        if now >= stop_at and code == MORE:
            if request["mode"] != "train" or not program.has("finish"):
                raise StopError("timeout", "The program had more steps to make at its wall limit.")
            break
    if program.has("finish"):
        program.check_code(program.call("finish"))


def run(request: dict[str, Any], stream: BinaryIO) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    """Do one run and return its result message and files."""
    message: dict[str, Any] = {"type": "result", "status": "ok", "reason": "", "code": 0, "log": "", "peak": 0}
    files: list[tuple[str, bytes]] = []
    program = None
    limit_compiler()
    try:
        engine = make_engine()
        module = load_module(engine, request)
        frame = encode_frame(read_entries(request))
        seconds = request["seconds"]
        cpu_used = int(time.process_time()) + 1
        memory_bytes, output_bytes = request["memory_bytes"], request["output_bytes"]
        copies = len(frame) + 3 * min(memory_bytes, output_bytes)
        limit_process(memory_bytes + copies + HOST_MEMORY_BYTES, cpu_used + seconds + 5)
        send({"type": "running"}, stream)
        timer = threading.Timer(seconds, engine.increment_epoch)
        timer.daemon = True
        timer.start()
        program = Program(engine, module, memory_bytes)
        drive(program, request, frame, stream)
        files = pick_files(decode_frame(program.read_output(output_bytes), output_bytes), request)
    except StopError as stop:
        message |= {"status": stop.status, "reason": stop.reason, "code": stop.code, "log": stop.log}
    except FrameError as error:
        message |= {"status": "bad_output", "reason": f"The output is no frame: {error}.", "code": None}
    except MemoryError:
        message |= {"status": "oom", "reason": "The run needs more memory than it was granted.", "code": None}
    if program is not None:
        message["peak"] = program.get_memory_size()
    message["cpu_ms"] = int(time.process_time() * 1000)
    return message, files


def pick_files(entries: list[Entry], request: dict[str, Any]) -> list[tuple[str, bytes]]:
    """Keep the outputs that the parent allows; those it requires must be there."""
    found = {entry.name: bytes(entry.data) for entry in entries if entry.kind == Kind.FILE}
    missing = [name for name in request["required"] if name not in found]
    if missing:
        raise StopError("bad_output", f"The program wrote no {missing[0]}.")
    return [(name, found[name]) for name in (*request["required"], *request["optional"]) if name in found]


def main() -> NoReturn:
    """Serve the parent's one request."""
    stream = sys.stdout.buffer
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=exit_with_parent, daemon=True).start()
    try:
        message, files = run(request, stream)
    except Exception:  # our own trouble, not the program's: the parent must hear of it
        send({"type": "broken", "text": traceback.format_exc()[-4000:]}, stream)
        os._exit(2)
    message["files"] = [[name, len(data)] for name, data in files]
    send(message, stream)
    for _, data in files:
        stream.write(data)
    stream.flush()
    os._exit(0)
