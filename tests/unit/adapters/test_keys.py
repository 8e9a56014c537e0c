"""Keys and their files, on a real disk with the real library."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
import threading
import time
from pathlib import Path

import pytest
from nacl import bindings

from crdtchain.adapters import keys
from crdtchain.adapters.keys import SigningKey, create_key_file, load_key_file, sodium_verifier
from crdtchain.codec import format_did
from crdtchain.errors import KeyFileError, UsageError

SEED = bytes(range(1, 33))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "key.json"


def damage(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_rfc_8032_test_1_signs_as_published() -> None:
    key = SigningKey.from_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.author.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )


def test_generated_keys_differ_and_sign() -> None:
    alice, bob = SigningKey.generate(), SigningKey.generate()
    assert alice.author != bob.author
    assert sodium_verifier(alice.author, b"m", alice.sign(b"m"))
    assert not sodium_verifier(bob.author, b"m", alice.sign(b"m"))


@pytest.mark.parametrize("lengths", [(31, 64), (33, 64), (32, 63), (32, 65), (0, 0)])
def test_the_verifier_never_hands_wrong_lengths_to_the_library(
    lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library reads as many bytes as it expects, whatever it was given."""
    asked: list[bytes] = []
    monkeypatch.setattr(bindings, "crypto_sign_open", lambda signed, key: asked.append(key))
    assert not sodium_verifier(b"\x05" * lengths[0], b"m", b"\x05" * lengths[1])
    assert asked == []


def test_the_verifier_lets_other_threads_run() -> None:
    """A verification of 64 MiB takes tenths of a second; another thread never stands still for most of that."""
    alice, message = SigningKey.from_seed(SEED), bytes(64 * 2**20)
    signature = alice.sign(message)
    started, ended, gaps = threading.Event(), threading.Event(), [0.0]

    def tick() -> None:
        last = time.perf_counter()
        started.set()
        while not ended.is_set():
            now = time.perf_counter()
            gaps[0], last = max(gaps[0], now - last), now

    thread = threading.Thread(target=tick)
    thread.start()
    started.wait()
    begun = time.perf_counter()
    assert sodium_verifier(alice.author, message, signature)
    duration = time.perf_counter() - begun
    ended.set()
    thread.join()
    assert gaps[0] < duration / 2


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_seeds_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(UsageError):
        SigningKey.from_seed(bytes(length))


def test_nothing_shows_the_seed(path: Path) -> None:
    key = SigningKey.from_seed(SEED)
    assert repr(key) == f"SigningKey({format_did(key.author)})"
    assert str(key) == f"{key}" == repr(key)
    for action in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            action(key)
    assert not hasattr(key, "__dict__")


def test_a_key_comes_back_from_its_file(path: Path) -> None:
    key = SigningKey.generate()
    create_key_file(path, key)
    loaded = load_key_file(path)
    assert loaded.author == key.author
    assert loaded.sign(b"m") == key.sign(b"m")
    assert load_key_file(path, "not needed").author == key.author


def test_only_the_owner_can_reach_file_and_folder(path: Path) -> None:
    before = os.umask(0)
    try:
        create_key_file(path, SigningKey.generate())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_key_never_replaces_another(path: Path) -> None:
    key = SigningKey.generate()
    create_key_file(path, key)
    with pytest.raises(KeyFileError, match="already"):
        create_key_file(path, SigningKey.generate())
    assert load_key_file(path).author == key.author


def test_a_link_to_nowhere_is_not_followed_when_creating(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(KeyFileError):
        create_key_file(path, SigningKey.generate())
    assert not (path.parent / "elsewhere").exists()


def test_a_folder_that_others_can_write_in_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o770)
    with pytest.raises(KeyFileError, match="chmod 700"):
        create_key_file(path, SigningKey.generate())
    assert not path.exists()


def test_a_full_disk_leaves_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyFileError, match="No space"):
        create_key_file(path, SigningKey.generate())
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666, 0o610])
def test_a_file_open_to_others_is_refused(path: Path, mode: int) -> None:
    create_key_file(path, SigningKey.generate())
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_key_file(path)


def test_a_missing_file_says_how_to_make_one(path: Path) -> None:
    with pytest.raises(KeyFileError, match="crdtchain init"):
        load_key_file(path)


def test_what_is_not_a_file_is_refused_at_once(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(KeyFileError):
        load_key_file(path)
    pipe = path.parent / "pipe"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(KeyFileError, match="not a file"):
        load_key_file(pipe)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", b"{}", b'{"format": "crdtchain-key/1"}', b"[" * 4000, b"x" * 10_000],
)
def test_a_damaged_file_is_refused_in_a_sentence(path: Path, content: bytes) -> None:
    create_key_file(path, SigningKey.generate())
    path.write_bytes(content)
    with pytest.raises(KeyFileError):
        load_key_file(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": "00"},
        {"seed": "zz" * 32},
        {"seed": 5},
        {"seed": "11" * 32},
        {"author": "did:key:z6Mk"},
        {"author": None},
    ],
)
def test_a_changed_field_is_noticed_and_the_seed_is_not_told(path: Path, changes: dict[str, object]) -> None:
    create_key_file(path, SigningKey.from_seed(SEED))
    damage(path, **changes)
    with pytest.raises(KeyFileError, match="damaged") as caught:
        load_key_file(path)
    assert SEED.hex() not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_later_format_is_refused(path: Path) -> None:
    create_key_file(path, SigningKey.generate())
    damage(path, format="crdtchain-key/2")
    with pytest.raises(KeyFileError, match="kind"):
        load_key_file(path)


def test_a_passphrase_seals_the_key(path: Path) -> None:
    key = SigningKey.from_seed(SEED)
    create_key_file(path, key, "correct horse ✓")
    assert SEED.hex() not in path.read_text()
    assert load_key_file(path, "correct horse ✓").author == key.author
    for passphrase in (None, ""):
        with pytest.raises(KeyFileError, match="has a passphrase"):
            load_key_file(path, passphrase)
    with pytest.raises(KeyFileError, match="does not open") as caught:
        load_key_file(path, "incorrect horse")
    assert "incorrect horse" not in str(caught.value)


def test_a_damaged_seal_is_refused(path: Path) -> None:
    create_key_file(path, SigningKey.from_seed(SEED), "p")
    sealed = json.loads(path.read_text())["sealed"]
    flipped = bytes.fromhex(sealed["box"])[:-1] + bytes([bytes.fromhex(sealed["box"])[-1] ^ 1])
    for change in ({"salt": "00"}, {"box": "00" * 10}, {"box": flipped.hex()}, {"box": 7}):
        damage(path, sealed={**sealed, **change})
        with pytest.raises(KeyFileError):
            load_key_file(path, "p")


@pytest.mark.parametrize("passphrase", ["", "\ud800"])
def test_passphrases_that_protect_nothing_are_refused(path: Path, passphrase: str) -> None:
    with pytest.raises(UsageError):
        create_key_file(path, SigningKey.generate(), passphrase)
    assert not path.exists()


def test_the_installed_library_passes() -> None:
    keys.self_test()


@pytest.mark.parametrize("verdict", [True, False])
def test_a_library_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch, verdict: bool) -> None:
    monkeypatch.setattr(keys, "sodium_verifier", lambda key, message, signature: verdict)
    with pytest.raises(KeyFileError, match="PyNaCl"):
        keys.self_test()


def test_a_library_that_signs_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SigningKey, "sign", lambda self, message: bytes(64))
    with pytest.raises(KeyFileError, match="own signature"):
        keys.self_test()
