"""A batch gets the same answers as its blocks one by one, in their order."""

from __future__ import annotations

import pytest

from crdtchain.adapters.keys import sodium_verifier
from crdtchain.adapters.verifying import verify_batch
from crdtchain.errors import DecodeError, InvalidOpError, SignatureError
from crdtchain.ops import Beat, SignedOp
from crdtchain.verify import verify_block
from tests.builders import World


@pytest.fixture(scope="module")
def world() -> World:
    world = World()
    world.play_job("alice", {"bob": [90]})
    return world


def flip_last(block: bytes) -> bytes:
    return block[:-1] + bytes([block[-1] ^ 1])


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [0, 1, 2, 3, 50, 1_000])
async def test_valid_blocks_come_back_as_ops_in_order(world: World, size: int) -> None:
    blocks = [signed.block for signed in world.log[:size]]
    assert await verify_batch(blocks, world.network, sodium_verifier) == world.log[:size]


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [1, 60])
async def test_each_bad_block_gets_its_own_error(world: World, size: int) -> None:
    blocks = [signed.block for signed in world.log[:size]]
    for place in range(0, size, 7):
        broken = [*blocks]
        broken[place] = flip_last(blocks[place]) if place % 2 else blocks[place][:-1]
        answers = await verify_batch(broken, world.network, sodium_verifier)
        expected = SignatureError if place % 2 else DecodeError
        assert isinstance(answers[place], expected)
        assert [type(answer) for n, answer in enumerate(answers) if n != place] == [SignedOp] * (size - 1)


@pytest.mark.asyncio
async def test_ops_of_another_network_do_not_hold(world: World) -> None:
    blocks = [signed.block for signed in world.log[1:20]]
    answers = await verify_batch(blocks, World(seed="other").network, sodium_verifier)
    assert all(isinstance(answer, SignatureError) for answer in answers)


def test_genesis_is_signed_for_no_network_and_nothing_else_is(world: World) -> None:
    other = World(seed="other").network
    assert verify_block(world.genesis.block, other, sodium_verifier) == world.genesis
    unsigned_for = world.sign("w1", Beat(), network=bytes(36))
    with pytest.raises(InvalidOpError, match="does not hold"):
        verify_block(unsigned_for.block, world.network, sodium_verifier)
