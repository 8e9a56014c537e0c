"""Verification of many blocks at once, on all cores.

libsodium runs outside the interpreter's lock, decoding does not. So a batch is decoded first, on the event loop's
thread, and its signatures are then checked by a few threads side by side. Doing both at once is slower: a thread that
comes back from libsodium waits for the decoder to let go of the lock, up to the interpreter's switch interval, for
each single signature.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Final, TypeAlias

from crdtchain.errors import InvalidOpError
from crdtchain.ops import SignedOp
from crdtchain.scalars import OpId
from crdtchain.shapes import decode_op
from crdtchain.signing import Verifier
from crdtchain.verify import verify_block, verify_op

Verified: TypeAlias = SignedOp | InvalidOpError
"""An op that holds, or why it does not."""

_INLINE_MAX: Final = 2
"""So few ops cost less than the way to another thread."""
_SLICE: Final = 50
"""So many blocks are decoded before other tasks get their turn: 2 ms."""
_WORKERS_MAX: Final = 4


async def verify_batch(
    blocks: Sequence[bytes], network: OpId, verifier: Verifier, executor: Executor | None = None
) -> list[Verified]:
    """Decode blocks and check their signatures; returns one answer for each, in their order, and never raises for one.

    `executor`: where the signatures are checked; by default the event loop's own threads.
    """
    if len(blocks) <= _INLINE_MAX:
        return [_verify_block(block, network, verifier) for block in blocks]
    answers: list[Verified] = []
    for start in range(0, len(blocks), _SLICE):
        answers.extend(map(_decode, blocks[start : start + _SLICE]))
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    workers = min(_WORKERS_MAX, os.cpu_count() or 1)
    size = -(-len(answers) // workers)
    parts = [answers[start : start + size] for start in range(0, len(answers), size)]
    checked = await asyncio.gather(
        *(loop.run_in_executor(executor, _check_signatures, part, network, verifier) for part in parts)
    )
    return [answer for part in checked for answer in part]


def _verify_block(block: bytes, network: OpId, verifier: Verifier) -> Verified:
    try:
        return verify_block(block, network, verifier)
    except InvalidOpError as error:
        return error


def _decode(block: bytes) -> Verified:
    try:
        return decode_op(block)
    except InvalidOpError as error:
        return error


def _check_signatures(answers: Sequence[Verified], network: OpId, verifier: Verifier) -> list[Verified]:
    return [_check_signature(answer, network, verifier) for answer in answers]


def _check_signature(answer: Verified, network: OpId, verifier: Verifier) -> Verified:
    if isinstance(answer, InvalidOpError):
        return answer
    try:
        verify_op(answer, network, verifier)
    except InvalidOpError as error:
        return error
    return answer
