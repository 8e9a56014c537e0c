"""Keys of authors: libsodium's verifier, the key that signs, and its file on disk.

A key file is one JSON object, at most 4 KiB, in one of two forms:

    {"format": "crdtchain-key/1", "author": "did:key:z6Mk…", "seed": HEX}
    {"format": "crdtchain-key/1", "author": "did:key:z6Mk…", "sealed": {"salt": HEX, "box": HEX}}

`seed` is the 32-byte seed of RFC 8032. `box` is libsodium's SecretBox (24-byte nonce, then 16-byte tag and
ciphertext) of that seed, under the 32-byte key that Argon2id 1.3 makes of the passphrase (UTF-8) and the 16-byte salt
with 3 passes over 256 MiB. `author` must be the seed's own: so a damaged file is noticed before it signs.

Invariants:

1. A file is created exclusively, with mode 0600, and is on disk before `create_key_file` returns: a key never
   replaces another.
2. A file that group or others can read or write is refused: its key may be known.
3. Neither texts of errors, nor `repr`, nor pickles carry anything of the seed.

Sources: RFC 8032, RFC 9106, libsodium's documentation. Not here: the lock that keeps two processes from using one
key.
"""

from __future__ import annotations

import json
import os
import stat
from importlib import resources
from pathlib import Path
from typing import Final, NoReturn

import nacl.bindings as sodium
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.exceptions import RuntimeError as SodiumRuntimeError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox
from nacl.utils import random as random_bytes

from crdtchain.codec import format_did
from crdtchain.errors import KeyFileError, SignatureError, UsageError
from crdtchain.scalars import Author
from crdtchain.signing import KEY_BYTES, SIGNATURE_BYTES, verify_signature

SEED_BYTES: Final = 32
FILE_BYTES_MAX: Final = 4_096
_FORMAT: Final = "crdtchain-key/1"
_SALT_BYTES: Final = 16
_KDF_PASSES: Final = 3
_KDF_MEMORY_BYTES: Final = 256 * 2**20
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def sodium_verifier(key: bytes, message: bytes, signature: bytes) -> bool:
    """Say whether libsodium takes a signature; it runs outside the interpreter's lock: threads verify in parallel."""
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        sodium.crypto_sign_open(signature + message, key)
    except BadSignatureError:
        return False
    return True


class SigningKey:
    """An author's secret key. It can sign and be stored, and shows nothing else of itself."""

    __slots__ = ("__pair", "author")

    author: Author
    """The public half."""

    def __init__(self, seed: bytes) -> None:
        """Make the key of a 32-byte seed; `generate` and `from_seed` say it more clearly."""
        if len(seed) != SEED_BYTES:
            raise UsageError(f"the seed of a key has {SEED_BYTES} bytes, this one {len(seed)}")
        public, self.__pair = sodium.crypto_sign_seed_keypair(seed)
        self.author = Author(public)

    @classmethod
    def generate(cls) -> SigningKey:
        """Make a new key from the system's randomness."""
        return cls(random_bytes(SEED_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> SigningKey:
        """Make the key of a 32-byte seed.

        Raises:
            UsageError: it has another length.
        """
        return cls(seed)

    def sign(self, message: bytes) -> bytes:
        """Sign a message by RFC 8032; the same message always gets the same 64 bytes."""
        return sodium.crypto_sign(message, self.__pair)[:SIGNATURE_BYTES]

    def export_seed(self) -> bytes:
        """Hand out the secret itself: for key files, and for nothing that is shown or logged."""
        return sodium.crypto_sign_ed25519_sk_to_seed(self.__pair)

    def __repr__(self) -> str:
        return f"SigningKey({format_did(self.author)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signing key can't be pickled or copied")


def create_key_file(path: Path, key: SigningKey, passphrase: str | None = None) -> None:
    """Write a new key file, mode 0600, in a folder that is made with mode 0700 if it is missing.

    Raises:
        KeyFileError: there is one already, others can write in the folder, or the disk refuses.
        UsageError: the passphrase is empty or not valid Unicode.
    """
    path = Path(path)
    content = _encode_key_file(key, passphrase)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise KeyFileError(f"others can write in {path.parent}, where the key would be: run chmod 700 on it")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_durably(descriptor, content)
        except OSError:
            path.unlink()
            raise
        _sync_folder(path.parent)
    except FileExistsError:
        raise KeyFileError(
            f"there is a key at {path} already, and it is never replaced: choose another place"
        ) from None
    except OSError as error:
        raise KeyFileError(f"can't write the key file {path}: {error.strerror}") from None


def load_key_file(path: Path, passphrase: str | None = None) -> SigningKey:
    """Read a key file; a passphrase is not looked at when the file has none.

    Raises:
        KeyFileError: the file is missing, open to others, damaged, or needs a (or another) passphrase.
        UsageError: the passphrase is not valid Unicode.
    """
    path = Path(path)
    content = _read_private(path)
    try:
        record = json.loads(content)
        if record["format"] != _FORMAT:
            raise KeyFileError(f"{path} is not a key file of a kind that this version knows")
        seed = _open_seed(path, record["sealed"], passphrase) if "sealed" in record else bytes.fromhex(record["seed"])
        if len(seed) != SEED_BYTES:
            raise ValueError
        key = SigningKey.from_seed(seed)
        if record["author"] != format_did(key.author):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KeyFileError(f"the key file {path} is damaged: restore it from a backup") from None
    return key


def self_test() -> None:
    """Judge the bundled edge cases, and one signature of our own making, with the installed library.

    Raises:
        KeyFileError: it judges one differently than the protocol: keys must not be used with it.
    """
    text = resources.files("crdtchain.adapters").joinpath("ed25519_vectors.json").read_text("utf-8")
    for case in json.loads(text)["cases"]:
        key, message, signature = (bytes.fromhex(case[field]) for field in ("key", "msg", "sig"))
        if is_accepted(key, message, signature) != case["accept"]:
            _refuse_library(case["id"])
    own = SigningKey.from_seed(bytes(range(SEED_BYTES)))
    if not is_accepted(own.author, b"crdtchain", own.sign(b"crdtchain")):
        _refuse_library("own signature")


def is_accepted(key: bytes, message: bytes, signature: bytes) -> bool:
    """Say whether the whole signature rule, with this library, takes a signature."""
    try:
        verify_signature(sodium_verifier, key, message, signature)
    except SignatureError:
        return False
    return True


def _refuse_library(case: str) -> NoReturn:
    raise KeyFileError(
        f"the installed libsodium judges the signature case {case} differently than the protocol: "
        "install the PyNaCl version that crdtchain names"
    )


def _encode_key_file(key: SigningKey, passphrase: str | None) -> bytes:
    """Make the content of a key file."""
    record: dict[str, object] = {"format": _FORMAT, "author": format_did(key.author)}
    if passphrase is None:
        record["seed"] = key.export_seed().hex()
    else:
        if not passphrase:
            raise UsageError("an empty passphrase protects nothing: give one, or none at all")
        salt = random_bytes(_SALT_BYTES)
        box = bytes(_make_box(passphrase, salt).encrypt(key.export_seed()))
        record["sealed"] = {"salt": salt.hex(), "box": box.hex()}
    return json.dumps(record, indent=1).encode() + b"\n"


def _open_seed(path: Path, sealed: dict[str, str], passphrase: str | None) -> bytes:
    """Open the box of a sealed key file."""
    salt, box = bytes.fromhex(sealed["salt"]), bytes.fromhex(sealed["box"])
    if len(salt) != _SALT_BYTES:
        raise ValueError
    if not passphrase:
        raise KeyFileError(f"the key in {path} has a passphrase: give it")
    try:
        return _make_box(passphrase, salt).decrypt(box)
    except CryptoError:
        raise KeyFileError(f"the passphrase does not open {path}: it is another one, or the file is damaged") from None


def _make_box(passphrase: str, salt: bytes) -> SecretBox:
    """Derive the box's key from a passphrase."""
    try:
        secret = passphrase.encode()
    except UnicodeEncodeError:
        raise UsageError("the passphrase is not valid Unicode: type it again") from None
    try:
        kdf_key = argon2id.kdf(SecretBox.KEY_SIZE, secret, salt, opslimit=_KDF_PASSES, memlimit=_KDF_MEMORY_BYTES)
    except SodiumRuntimeError:
        raise KeyFileError("a passphrase needs 256 MiB of free memory for a moment: close other programs") from None
    return SecretBox(kdf_key)


def _read_private(path: Path) -> bytes:
    """Read a small regular file that nobody else may touch."""
    try:
        # Without O_NONBLOCK opening a named pipe would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise KeyFileError(f"{path} is not a file")
            if state.st_mode & _OTHERS:
                raise KeyFileError(
                    f"others may use the key file {path}: run chmod 600 on it, and replace the key if it leaked"
                )
            return file.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        raise KeyFileError(f"there is no key at {path}: make one with 'crdtchain init'") from None
    except OSError as error:
        raise KeyFileError(f"can't read the key file {path}: {error.strerror}") from None


def _write_durably(descriptor: int, content: bytes) -> None:
    """Write and close a file, and come back when it is on disk."""
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(path: Path) -> None:
    """Come back when the folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
