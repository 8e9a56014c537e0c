"""A node's data folder: what lies where, and how a node, a network, a membership begins.

key              the author's key (adapters.keys), 0600
lock             held while a process uses the folder
ledger.sqlite    ops, snapshot, notes (adapters.sqlite_store)
genesis.cbor     the network's first block, for people and tools; the store has it too
blobs/           blobs by CID (node.blobs)
token            the secret that the local port asks for, 0600
config.toml      settings (node.config), written by people
node.json        addresses of the running node, 0600; not there when none runs
peers.list       addresses to dial always, written by people (node.dialer)
peers.allow      keys that may connect, written by people (node.allow)
place, signed    by which a copied or restored folder is known (node.place)
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

from crdtchain import limits
from crdtchain.adapters.data_folder import DataFolderLock
from crdtchain.adapters.keys import SigningKey, create_key_file, is_accepted, load_key_file
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.codec import format_cid
from crdtchain.errors import InvalidOpError, KeyFileError, NoPeerError, PeerError, StoreError, UsageError
from crdtchain.ops import Genesis, Kind, SignedOp
from crdtchain.params import compute_params
from crdtchain.scalars import Author
from crdtchain.shapes import decode_op, encode_payload, join_block
from crdtchain.signing import GENESIS_NETWORK, signing_bytes
from node.addresses import parse_peer_url
from node.config import load_settings
from node.dialing import explain, make_http
from node.tls import make_client_context
from node.watched import add_line

KEY_FILE: Final = "key"
GENESIS_FILE: Final = "genesis.cbor"
BLOBS_FOLDER: Final = "blobs"
TOKEN_FILE: Final = "token"  # noqa: S105 - the name of the file
NODE_FILE: Final = "node.json"
PEERS_FILE: Final = "peers.list"
PEERS_HEADER: Final = "Addresses of other nodes' peer ports, one a line; the node connects to them always."
_FETCH_S: Final = 10


def create_data(folder: Path, passphrase: str | None = None) -> SigningKey:
    """Make a data folder with a new key and token.

    Raises:
        KeyFileError: there is a key already.
        StoreError: the folder can't be written.
    """
    with DataFolderLock(folder):
        key = SigningKey.generate()
        create_key_file(folder / KEY_FILE, key, passphrase)
        load_token(folder)
    return key


def load_key(folder: Path, passphrase: str | None = None) -> SigningKey:
    """Read the key of a data folder.

    Raises:
        KeyFileError: there is none, or it can't be used.
    """
    return load_key_file(folder / KEY_FILE, passphrase)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, in one step."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror}") from error


def load_token(folder: Path) -> str:
    """Return the local port's token, making one when there is none.

    Raises:
        KeyFileError: others may read it.
        StoreError: it can't be written.
    """
    path = folder / TOKEN_FILE
    try:
        if path.stat().st_mode & 0o077:
            raise KeyFileError(f"others may read {path}: delete the file, and a new one is made")
        token = path.read_text("ascii").strip()
        if len(token) >= 32:
            return token
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError):
        raise StoreError(f"the file {path} can't be read: delete it, and a new one is made") from None
    token = secrets.token_urlsafe(32)
    write_private(path, token.encode() + b"\n")
    return token


def write_node_file(folder: Path, content: Mapping[str, object]) -> None:
    """Say where the running node answers."""
    write_private(folder / NODE_FILE, json.dumps(content, indent=1).encode() + b"\n")


def read_node_file(folder: Path) -> dict[str, Any]:
    """Return what the running node says of itself: pid, did, network, local, peer.

    Raises:
        NoPeerError: no node runs in this folder, as far as the file says.
    """
    try:
        content = json.loads((folder / NODE_FILE).read_text("utf-8"))
        if isinstance(content, dict) and isinstance(content.get("local"), str):
            return content
    except (OSError, ValueError):
        pass
    raise NoPeerError(f"no node runs in {folder}: start it with 'crdtchain serve'")


def remove_node_file(folder: Path) -> None:
    """Say that no node runs any more."""
    (folder / NODE_FILE).unlink(missing_ok=True)


async def found_network(
    folder: Path,
    name: str,
    witnesses: Sequence[Author] = (),
    grants: Mapping[Author, int] | None = None,
    *,
    delta_ms: int = 5_000,
    tick_ms: int | None = None,
    expiry_ms: int = 86_400_000,
    elector_min: int = 1,
    verdict_min: int = 1,
    bounty_min: int = 1,
    passphrase: str | None = None,
    now_ms: int | None = None,
) -> SignedOp:
    """Found a network: sign its genesis with the folder's key and store it.

    Without witnesses the founder is the only one: the simple mode. Ticks are as long as Δ unless they are given.

    Raises:
        UsageError: the folder belongs to a network already, or a value is not allowed.
        KeyFileError: the key can't be used.
    """
    key = await asyncio.to_thread(load_key, folder, passphrase)
    genesis = Genesis(
        name=name,
        witnesses=tuple(bytes(witness) for witness in witnesses) or (bytes(key.author),),
        grants=tuple(sorted((bytes(author), amount) for author, amount in (grants or {}).items())),
        elector_min=elector_min,
        verdict_min=verdict_min,
        bounty_min=bounty_min,
        delta_ms=delta_ms,
        tick_ms=delta_ms if tick_ms is None else tick_ms,
        expiry_ms=expiry_ms,
    )
    time_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    payload = encode_payload(author=key.author, seq=0, prev=None, parents=(), time=time_ms, body=genesis)
    try:
        signed = decode_op(join_block(payload, key.sign(signing_bytes(GENESIS_NETWORK, payload))))
    except InvalidOpError as error:
        raise UsageError(f"this network can't be founded: {error}") from None
    await _begin(folder, signed)
    return signed


async def join_network(folder: Path, url: str, *, is_kept: bool = False) -> SignedOp:
    """Join the network of a peer: fetch its genesis and store it; with `is_kept` the node connects to the peer always.

    How the peer's certificate is checked, if it has one, the folder's settings say.

    Raises:
        NoPeerError: nobody answers there.
        PeerError: what answers has no genesis.
        UsageError: the folder belongs to another network.
    """
    block = await _fetch_genesis(url, make_client_context(load_settings(folder).tls_ca))
    try:
        signed = decode_op(block)
        validate_genesis(signed)
    except InvalidOpError as error:
        raise PeerError(f"{url} has no valid genesis: {error}") from None
    await _begin(folder, signed)
    if is_kept:
        add_line(folder / PEERS_FILE, str(parse_peer_url(url)), PEERS_HEADER, write_private)
    return signed


def validate_genesis(signed: SignedOp) -> None:
    """Check that an op founds a network and is signed.

    Raises:
        InvalidOpError: it does not, or is not.
    """
    if signed.op.kind is not Kind.GENESIS:
        raise InvalidOpError("genesis", "the op is no genesis")
    if not is_accepted(signed.op.author, signing_bytes(GENESIS_NETWORK, signed.payload), signed.signature):
        raise InvalidOpError("signature", "the signature of the genesis does not hold")
    compute_params(signed.op)


async def _fetch_genesis(url: str, tls: ssl.SSLContext) -> bytes:
    address = parse_peer_url(url)
    timeout = aiohttp.ClientTimeout(total=_FETCH_S)
    try:
        async with make_http(tls, lambda _: True, timeout) as http, http.get(address / "genesis") as response:
            if response.status != 200:
                raise PeerError(f"{url} answers, but not as a peer port (status {response.status})")
            data = await response.content.read(limits.BLOCK_BYTES_MAX + 1)
            while not response.content.at_eof() and len(data) <= limits.BLOCK_BYTES_MAX:
                data += await response.content.read(limits.BLOCK_BYTES_MAX)
            return data
    except (aiohttp.ClientSSLError, aiohttp.ClientConnectorDNSError) as error:
        raise NoPeerError(f"can't connect to {url}: {explain(error, url)}") from None
    except (aiohttp.ClientError, OSError, TimeoutError):
        raise NoPeerError(f"nobody answers at {url}: is the node running, and is this its peer port?") from None


async def _begin(folder: Path, genesis: SignedOp) -> None:
    """Store a genesis as a folder's first op; the same one again changes nothing."""
    store = SqliteStore(folder)
    await store.open()
    try:
        rows = await store.read(-1, 1)
        if rows and rows[0][1] != genesis.block:
            there = format_cid(decode_op(rows[0][1]).op.id)
            raise UsageError(f"{folder} belongs to the network {there} already: use another --data folder")
        if not rows:
            await store.append([genesis], durable=True)
        write_private(folder / GENESIS_FILE, genesis.block)
    finally:
        await store.close()
