"""The process that verifies signatures for a node, and the node's end of it.

Threads would wait for the interpreter's lock once for each signature, and a pool of processes brings threads of its own
that wait for it too. Here the node's loop writes rows to the process and is told by the loop when an answer has come.

A question is `count` (u32, little-endian), the size of each block (u32), the authors (32 bytes each), and the blocks.
An answer is the place of the first block whose signature does not hold, or -1 (i32). Answers come in the order of the
questions. The first question is the network's id: it is answered too, with -1, when the process is up.

    python -m node.verifier < questions > answers
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from struct import Struct, pack, unpack
from typing import BinaryIO, Final

from crdtchain.adapters.keys import is_accepted
from crdtchain.errors import CrdtchainError
from crdtchain.signing import KEY_BYTES, SIGNATURE_BYTES, signing_bytes

NETWORK_BYTES: Final = 36
_COUNT: Final = Struct("<I")
_ANSWER: Final = Struct("<i")

Rows = Sequence[tuple[bytes, bytes]]
"""Authors and their blocks."""


class VerifierDiedError(CrdtchainError):
    """The process has ended without an answer."""


def verify_many(network: bytes, rows: Rows) -> int:
    """Verify (author, block) pairs; returns the place of the first whose signature does not hold, or -1."""
    for place, (author, block) in enumerate(rows):
        if not is_accepted(author, signing_bytes(network, block[1:-66]), block[-SIGNATURE_BYTES:]):
            return place
    return -1


class Verifier(asyncio.SubprocessProtocol):
    """One verifying process, as the loop sees it; make it with `start_verifier`."""

    def __init__(self) -> None:
        self.is_up = False
        """Whether it has answered."""
        self.is_dead = False
        """Whether it has ended."""
        self._transport: asyncio.SubprocessTransport | None = None
        self._answers = bytearray()
        self._asked: deque[asyncio.Future[int]] = deque()

    @property
    def pid(self) -> int | None:
        """The number of the process."""
        return None if self._transport is None else self._transport.get_pid()

    def verify(self, rows: Rows) -> asyncio.Future[int]:
        """Ask what `verify_many` returns; fails with `VerifierDiedError`."""
        blocks = [block for _, block in rows]
        sizes = pack(f"<{1 + len(rows)}I", len(rows), *map(len, blocks))
        return self._ask(b"".join((sizes, *(author for author, _ in rows), *blocks)))

    def close(self) -> None:
        """End the process, without waiting for it."""
        if self._transport is not None:
            self._transport.close()
        self._fail()

    def _ask(self, question: bytes) -> asyncio.Future[int]:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        pipe = None if self._transport is None or self.is_dead else self._transport.get_pipe_transport(0)
        if isinstance(pipe, asyncio.WriteTransport):
            self._asked.append(answer)
            pipe.write(question)
        else:
            answer.set_exception(VerifierDiedError())
        return answer

    def _fail(self) -> None:
        self.is_dead = True
        while self._asked:
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(VerifierDiedError())

    # -- what the loop calls --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the process."""
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Hand answers to who asked."""
        self._answers += data
        while len(self._answers) >= _ANSWER.size and self._asked:
            (place,) = _ANSWER.unpack_from(self._answers)
            del self._answers[: _ANSWER.size]
            self.is_up = True
            answer = self._asked.popleft()
            if not answer.done():
                answer.set_result(place)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Nothing more is answered."""
        self._fail()

    def process_exited(self) -> None:
        """Nothing more is answered."""
        self._fail()


async def start_verifier(network: bytes) -> Verifier:
    """Start a verifying process; it may be asked at once, and answers when it is up.

    Raises:
        OSError: it can't be started.
    """
    # It finds the same modules as this process, whatever folder it is started in.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = (sys.executable, "-P", "-m", "node.verifier")
    loop = asyncio.get_running_loop()
    _, verifier = await loop.subprocess_exec(Verifier, *command, stderr=None, env=environment)
    # Who asks next is answered after this.
    verifier._ask(network)
    return verifier


def answer_questions(source: BinaryIO, target: BinaryIO) -> None:
    """Answer until the questions end."""
    network = source.read(NETWORK_BYTES)
    if len(network) < NETWORK_BYTES:
        return
    place = -1
    while True:
        target.write(_ANSWER.pack(place))
        target.flush()
        head = source.read(_COUNT.size)
        if len(head) < _COUNT.size:
            return
        (count,) = _COUNT.unpack(head)
        sizes = unpack(f"<{count}I", source.read(_COUNT.size * count))
        keys, blocks = source.read(KEY_BYTES * count), source.read(sum(sizes))
        rows, start = list[tuple[bytes, bytes]](), 0
        for row, size in enumerate(sizes):
            rows.append((keys[KEY_BYTES * row : KEY_BYTES * (row + 1)], blocks[start : start + size]))
            start += size
        place = verify_many(network, rows)


def main() -> None:
    """Verify for the process that started this one."""
    # The node decides when to stop; an interrupt at the terminal reaches every process of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        answer_questions(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        # The node has ended; what is left in the buffer has no reader.
        os._exit(1)


if __name__ == "__main__":
    main()
