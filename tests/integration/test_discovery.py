"""Nodes on one local network find each other by multicast DNS; what is announced there is a stranger's word."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from zeroconf.asyncio import AsyncServiceInfo

from crdtchain.scalars import Author, OpId
from node import discovery
from node.config import Settings
from node.discovery import SERVICE, Discovery, wants_mdns

pytestmark = pytest.mark.integration

NETWORK, OTHER = (OpId(bytes.fromhex("01711220") + bytes([number]) * 32) for number in (1, 2))
ALICE, BOB, CAROL = (Author(bytes([number]) * 32) for number in (1, 2, 3))
LOOPBACK = ("127.0.0.1",)


def has_multicast() -> bool:
    """Whether a datagram to a group comes back on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        try:
            receiver.bind(("", 0))
            receiver.settimeout(2)
            group = socket.inet_aton("224.0.0.251") + socket.inet_aton("127.0.0.1")
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            sender.sendto(b"?", ("224.0.0.251", receiver.getsockname()[1]))
            return receiver.recv(1) == b"?"
        except OSError:
            return False


needs_multicast = pytest.mark.skipif(not has_multicast(), reason="no multicast on loopback")


@asynccontextmanager
async def running(*discoveries: Discovery) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(found.run()) for found in discoveries]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wait_until(holds: Callable[[], object], what: str) -> None:
    until = time.monotonic() + 40
    while not holds():
        assert time.monotonic() < until, f"not in time: {what}"
        await asyncio.sleep(0.05)


@needs_multicast
@pytest.mark.asyncio
async def test_nodes_of_one_network_find_each_other_and_no_others() -> None:
    seen: dict[str, list[str]] = {"alice": [], "bob": [], "carol": [], "silent": []}
    alice = Discovery(NETWORK, ALICE, seen["alice"].append, port=1111, interfaces=LOOPBACK)
    bob = Discovery(NETWORK, BOB, seen["bob"].append, port=2222, interfaces=LOOPBACK, path="/a/b", is_https=True)
    carol = Discovery(OTHER, CAROL, seen["carol"].append, port=3333, interfaces=LOOPBACK)
    silent = Discovery(NETWORK, CAROL, seen["silent"].append, interfaces=LOOPBACK)
    async with running(alice, bob, carol, silent):
        await wait_until(lambda: seen["alice"] and seen["bob"] and len(set(seen["silent"])) == 2, "they are found")
        assert set(seen["alice"]) == {"https://127.0.0.1:2222/a/b"}
        assert set(seen["bob"]) == {"http://127.0.0.1:1111"}
        assert seen["carol"] == []


def announcement(port: int = 5, address: str = "192.168.7.7", **properties: str | bytes | None) -> AsyncServiceInfo:
    own = Discovery(NETWORK, BOB, print, port=port)
    fields = {"network": own._network, "node": own._did, "path": "", "https": "0", **properties}
    return AsyncServiceInfo(SERVICE, f"x.{SERVICE}", port=port, parsed_addresses=[address], properties=fields)


def test_what_is_announced_is_read_with_care() -> None:
    reader = Discovery(NETWORK, ALICE, print, port=1)
    assert reader.read(announcement()) == ["http://192.168.7.7:5"]
    assert reader.read(announcement(443, https="1")) == ["https://192.168.7.7"]
    assert reader.read(announcement(address="fd00::7")) == ["http://[fd00::7]:5"]
    assert Discovery(NETWORK, BOB, print).read(announcement()) == []
    for bad in (
        announcement(0), announcement(address="127.0.0.1"), announcement(address="224.0.0.1"),
        announcement(address="0.0.0.0"), announcement(address="fe80::1"), announcement(network="other"),
        announcement(network=None), announcement(network=b"\xff"),
    ):  # fmt: skip
        assert reader.read(bad) == []
    # The rest is for the address book to refuse.
    for path in ("no slash", "/a?b", "/\xff", "//host/", "x" * 200):
        reader.read(announcement(path=path))
    many = AsyncServiceInfo(
        SERVICE,
        f"x.{SERVICE}",
        port=5,
        parsed_addresses=[f"192.168.7.{number}" for number in range(1, 200)],
        properties=announcement().properties,
    )
    assert len(reader.read(many)) == discovery.ADDRESSES_MAX


def test_discovery_is_on_when_others_could_connect() -> None:
    assert not wants_mdns(Settings())
    assert not wants_mdns(Settings(listen="127.0.0.1:1")) and not wants_mdns(Settings(listen="[::1]:1"))
    assert wants_mdns(Settings(listen="0.0.0.0:1")) and wants_mdns(Settings(listen="192.168.1.1:1"))
    assert wants_mdns(Settings(mdns="on")) and not wants_mdns(Settings(listen="0.0.0.0:1", mdns="off"))


@pytest.mark.asyncio
async def test_a_machine_without_multicast_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery, "RETRY_S", 0.02)
    nowhere = Discovery(NETWORK, ALICE, print, port=1, interfaces=("192.0.2.222",))
    async with running(nowhere):
        await asyncio.sleep(0.5)
        assert not nowhere.is_running
    told = [record for record in caplog.records if record.name == discovery.log.name]
    assert [record.levelno for record in told] == [logging.WARNING]


PROGRAM = """
import asyncio, sys
from crdtchain.scalars import Author, OpId
from node.discovery import Discovery

async def main():
    network = OpId(bytes.fromhex("01711220") + bytes([1]) * 32)
    note = lambda url: print(url, flush=True)
    await Discovery(network, Author(bytes([int(sys.argv[1])]) * 32), note, port=int(sys.argv[1])).run()

asyncio.run(main())
"""
"""A program that announces a node and prints what it finds."""


@contextmanager
def two_machines() -> Iterator[tuple[str, str]]:
    """Yield two network namespaces with a cable between them."""
    names = [f"crdtchain-{os.getpid()}-{number}" for number in (1, 2)]
    links = [f"cc{os.getpid() % 100_000}{letter}" for letter in "ab"]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
        for number, (name, link) in enumerate(zip(names, links, strict=True)):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "route", "add", "default", "dev", link)
        yield names[0], names[1]
    finally:
        for name in made:
            ip("netns", "del", name)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root to make network namespaces")
def test_two_machines_on_one_cable_find_each_other(tmp_path: Path) -> None:
    try:
        machines = two_machines()
        names = machines.__enter__()
    except subprocess.CalledProcessError:
        pytest.skip("this kernel has no network namespaces")
    try:
        root, outputs, processes = Path(__file__).parents[2], [], []
        for number, name in enumerate(names, start=1):
            outputs.append(tmp_path / name)
            with outputs[-1].open("wb") as file:
                command = ["ip", "netns", "exec", name, sys.executable, "-c", PROGRAM, str(number)]
                processes.append(subprocess.Popen(command, cwd=root, stdout=file, stderr=subprocess.STDOUT))
        until = time.monotonic() + 60
        wanted = ["http://10.77.0.2:2", "http://10.77.0.1:1"]
        while not all(url in path.read_text().split() for url, path in zip(wanted, outputs, strict=True)):
            assert time.monotonic() < until, [path.read_text() for path in outputs]
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        machines.__exit__(None, None, None)
