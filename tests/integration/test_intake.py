"""The intake with a real verifying process: what it says, and what happens when it dies."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys

import pytest

from crdtchain.errors import SignatureError
from crdtchain.ops import SignedOp
from node.intake import INLINE_MAX, Intake
from node.verifier import Verifier, VerifierDiedError, answer_questions, start_verifier, verify_many
from tests.builders import World

COUNT = 3 * INLINE_MAX


@pytest.fixture(scope="module")
def history() -> list[SignedOp]:
    world = World(witnesses=1, seed="intake")
    while len(world.log) < COUNT:
        world.beat_all()
        world.advance(10)
    return world.log


def spoil(block: bytes) -> bytes:
    return block[:-1] + bytes((block[-1] ^ 1,))


def make_rows(history: list[SignedOp]) -> list[tuple[bytes, bytes]]:
    return [(bytes(signed.op.author), signed.block) for signed in history[1:]]


async def wait_until_up(verifier: Verifier) -> None:
    async with asyncio.timeout(60):
        while not verifier.is_up:
            assert not verifier.is_dead
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_the_process_answers_in_order(history: list[SignedOp]) -> None:
    network, rows = bytes(history[0].op.id), make_rows(history)
    bad = [*rows]
    bad[17] = bad[17][0], spoil(bad[17][1])
    verifier = await start_verifier(network)
    try:
        questions = [rows, bad, [], rows[:1], bad[10:], bad[17:], rows]
        answers = await asyncio.wait_for(asyncio.gather(*map(verifier.verify, questions)), 60)
        assert answers == [-1, 17, -1, -1, 7, 0, -1]
        assert answers == [verify_many(network, question) for question in questions]
    finally:
        verifier.close()
    with pytest.raises(VerifierDiedError):
        await verifier.verify(rows)


@pytest.mark.asyncio
async def test_questions_to_a_process_that_dies_fail(history: list[SignedOp]) -> None:
    verifier = await start_verifier(bytes(history[0].op.id))
    answers = [verifier.verify(make_rows(history)) for _ in range(200)]
    assert verifier.pid is not None
    os.kill(verifier.pid, signal.SIGKILL)
    found = await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 60)
    assert isinstance(found[-1], VerifierDiedError)
    assert verifier.is_dead
    verifier.close()


def test_the_process_ends_with_its_questions(history: list[SignedOp]) -> None:
    network = bytes(history[0].op.id)
    for question, answers in ((b"", 0), (network[:20], 0), (network, 1), (network + b"\0\0", 1)):
        target = io.BytesIO()
        answer_questions(io.BytesIO(question), target)
        assert target.getvalue() == b"\xff\xff\xff\xff" * answers


@pytest.mark.asyncio
async def test_blocks_are_verified_with_and_without_the_process(history: list[SignedOp]) -> None:
    intake = Intake(history[0].op.id)
    blocks = [signed.block for signed in history[1:]]
    bad = [*blocks[:-1], spoil(blocks[-1])]
    try:
        for _ in range(2):
            # Before the process is up, and with it.
            assert await intake.prepare(blocks, lambda op: False) == history[1:]
            assert await intake.prepare(blocks[:3], lambda op: False) == history[1:4]
            with pytest.raises(SignatureError):
                await intake.prepare(bad, lambda op: False)
            with pytest.raises(SignatureError):
                await intake.prepare(bad[-3:], lambda op: False)
            assert intake.verifier is not None
            await wait_until_up(intake.verifier)
        verifier = intake.verifier
        assert verifier is not None and verifier.pid is not None
        os.kill(verifier.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while not verifier.is_dead:
                await asyncio.sleep(0.01)
        for _ in range(3):
            assert await intake.prepare(blocks, lambda op: False) == history[1:]
        assert intake.verifier is not verifier
    finally:
        intake.close()


@pytest.mark.asyncio
async def test_a_process_that_cannot_start_is_done_without(
    history: list[SignedOp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    intake = Intake(history[0].op.id)
    blocks = [signed.block for signed in history[1:]]
    for _ in range(2):
        assert await intake.prepare(blocks, lambda op: False) == history[1:]
    assert intake.verifier is None
    intake.close()


@pytest.mark.asyncio
async def test_what_is_known_is_left_out(history: list[SignedOp]) -> None:
    intake = Intake(history[0].op.id)
    known = {signed.op.id for signed in history[5:]}
    found = await intake.prepare([signed.block for signed in history[1:]], known.__contains__)
    assert found == history[1:5]


@pytest.mark.asyncio
async def test_a_block_that_comes_many_times_counts_once(history: list[SignedOp]) -> None:
    intake = Intake(history[0].op.id)
    blocks = [history[1].block] * 150 + [history[2].block, history[1].block]
    assert await intake.prepare(blocks, lambda op: False) == history[1:3]
    intake.close()
