"""Job files: the shipped ones, every kind of mistake with its sentence, and ids of files."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain import codec
from crdtchain.codec import Link
from crdtchain.errors import UsageError
from node.jobfile import TRY_RULES, NetworkRules, compute_file_id, read_job_file, wants_local_image
from node.tables import format_duration, format_micros, parse_duration_ms, parse_micros

EXAMPLES = Path(__file__).parents[3] / "examples"
RULES = NetworkRules(bounty_min=4, delta_ms=2_000, tick_ms=5_000, faulty_max=1)
NOW = 1_800_000_000_001
DOCKER_IMAGE = "sha256:" + "ab" * 32
ALICE = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"

GOOD = """
title = "Small"
metric = "mse"
bounty = 100
stake = 5
pool = 10
bid_for = "10m"
reveal_for = "2m"
verdict_for = "2m"
{top}
[task]
runtime = "wasm"
module = "m.wasm"
{task}
[task.params]
epochs = 3
rate = "0.5"
shuffle = true
{params}
[task.resources]
seconds = 10
{resources}
[model]
format = "raw"
arrays = {{ w = "float64[2]" }}
[files]
code = ["m.wasm"]
train = ["x.npy"]
test_features = ["t.npy"]
test_labels = "y.npy"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("m.wasm", "x.npy", "t.npy", "y.npy"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def write(folder: Path, change: str = "", to: str = "", **parts: str) -> Path:
    text = GOOD.format(**{name: parts.get(name, "") for name in ("top", "task", "params", "resources")})
    assert change in text
    path = folder / "job.toml"
    path.write_text(text.replace(change, to) if change else text)
    return path


@pytest.mark.parametrize("name", ["digits", "digits-wasm"])
def test_the_shipped_examples_can_be_posted(name: str) -> None:
    draft = read_job_file(EXAMPLES / name / "job.toml", RULES, NOW, DOCKER_IMAGE)
    assert draft.terms.bounty == 100
    assert all(at % RULES.tick_ms == 0 for at in (draft.terms.bid_until, draft.terms.verdict_until))
    assert set(draft.blobs.values()) == {
        *draft.code.values(),
        *draft.train.values(),
        *draft.features.values(),
        draft.labels,
    }
    assert wants_local_image(EXAMPLES / name / "job.toml") == (name == "digits")


def test_deadlines_count_from_each_other_and_are_rounded_up(folder: Path) -> None:
    terms = read_job_file(write(folder), RULES, NOW).terms
    assert (terms.bid_until, terms.reveal_until, terms.verdict_until) == (
        1_800_000_605_000, 1_800_000_725_000, 1_800_000_845_000,
    )  # fmt: skip


def test_a_moment_may_stand_for_a_length_of_time(folder: Path) -> None:
    path = write(folder, 'bid_for = "10m"', "bid_until = 2030-01-01T00:00:00+01:00")
    assert read_job_file(path, RULES, NOW).terms.bid_until == 1_893_452_400_000


def test_terms_carry_what_was_written(folder: Path) -> None:
    draft = read_job_file(write(folder, top='max_loss = "2.5"\ntags = ["b", "a", "b"]'), RULES, NOW)
    terms = draft.terms
    assert terms.max_loss == 2_500_000
    assert terms.tags == ("a", "b")
    assert terms.tolerance == 0
    assert terms.task.params == {"epochs": 3, "rate": "0.5", "shuffle": True}
    assert terms.task.image == "m.wasm"
    assert terms.data.labels == Link(codec.compute_blob_id(b"y.npy"))
    assert terms.model.arrays == (("w", "float64", (2,)),)


def test_tolerance_follows_the_type_of_the_model(folder: Path) -> None:
    path = EXAMPLES / "digits/job.toml"
    text = path.read_text().replace('tolerance = "0.000001"', "").replace('"data/', f'"{path.parent}/data/')
    text = text.replace('"train.py", "predict.py"', f'"{path.parent}/train.py", "{path.parent}/predict.py"')
    (folder / "a.toml").write_text(text)
    (folder / "b.toml").write_text(text.replace("float64[", "float32["))
    assert read_job_file(folder / "a.toml", RULES, NOW, DOCKER_IMAGE).terms.tolerance == 1
    assert read_job_file(folder / "b.toml", RULES, NOW, DOCKER_IMAGE).terms.tolerance == 10


FAULTS = [
    ("bounty = 100", "bounty = -5", "bounty is -5: the least is 4 credits"),
    ("bounty = 100", "bounty = 3", "bounty is 3: the least is 4 credits"),
    ("bounty = 100", "bounty = 1.5", "bounty is 1.5: write a whole number of credits"),
    ("bounty = 100", "bounty = true", "bounty is true: write a whole number of credits"),
    ("bounty = 100", "", "bounty is missing"),
    ("bounty = 100", "bounty = 9007199254740992", "bounty is 9007199254740992: the most is 9007199254740991 credits"),
    ("bounty = 100", "bounty = 9007199254740991", "bounty and pool together must stay within 2^53 - 1"),
    ("pool = 10", "pool = -1", "pool is -1: the least is 0 credits"),
    ("stake = 5", "stake = -1", "stake is -1: the least is 0 credits"),
    ("stake = 5", "stake = 0", 'stake is 0: with on_cheat = "refund" the least is 1 credit'),
    ("stake = 5", "steak = 5", "unknown key steak: did you mean stake?"),
    ("seconds = 10", "second = 10", "unknown key task.resources.second: did you mean seconds?"),
    ("seconds = 10", "seconds = 0", "task.resources.seconds is 0: the least is 1 seconds"),
    ("[files]", "[fils]", "unknown key fils: did you mean files?"),
    ('title = "Small"', 'title = ""', "title is '': write a text"),
    ('title = "Small"', f'title = "{"x" * 201}"', "at most 200 bytes are allowed"),
    ('metric = "mse"', 'metric = "auc"', "metric is 'auc': use one of log_loss, error_rate, mse, mae"),
    ('metric = "mse"', "metric = ", "is not TOML"),
    ('bid_for = "10m"', "", 'bid_for is missing: write a length of time such as "10m", or bid_until = a moment'),
    ('bid_for = "10m"', 'bid_for = "soon"', "bid_for is 'soon': write a length of time such as"),
    ('bid_for = "10m"', 'bid_for = "0s"', "bid_for is '0s': that is past"),
    ('bid_for = "10m"', "bid_until = 2020-01-01T00:00:00Z", "that is past; the least is a moment from now"),
    ('bid_for = "10m"', "bid_until = 2030-01-01T00:00:00", "write a moment with its time zone"),
    ('bid_for = "10m"', 'bid_for = "999999999d"', "that is too far away"),
    ('bid_for = "10m"', 'bid_for = "10m"\nbid_until = 2030-01-01T00:00:00Z', "either bid_for or bid_until, not both"),
    ('reveal_for = "2m"', 'reveal_for = "5s"', "reveal_for is '5s': the least is 10s after the end of bidding"),
    ('verdict_for = "2m"', 'verdict_for = "20s"', "the least is 30s after the end of revealing, time to run"),
    ('module = "m.wasm"', "", "task.module is missing: name the .wasm file among files.code"),
    ('module = "m.wasm"', 'module = "n.wasm"', "task.module is 'n.wasm': name one of files.code: m.wasm"),
    ('module = "m.wasm"', 'module = "m.wasm"\nimage = "x"', "a wasm job has a module and no image"),
    ('module = "m.wasm"', 'module = "m.wasm"\ntrain = ["python"]', "task.train is ['python']: 0 to 0 entries"),
    ('runtime = "wasm"', 'runtime = "bash"', "task.runtime is 'bash': use docker or wasm"),
    ('runtime = "wasm"', 'runtime = "docker"', "a docker job has an image"),
    ("epochs = 3", "epochs = 0.5", 'task.params.epochs is 0.5: write a decimal number in quotes, such as "0.5"'),
    ("epochs = 3", "epochs = [1]", "task.params.epochs is [1]: write a text, a whole number, true or false"),
    ("epochs = 3", '"9x" = 3', "task.params.9x is no name for a parameter"),
    ("epochs = 3", "epochs = 9007199254740992", "whole numbers go to 2^53 - 1"),
    ('"float64[2]"', '"float16[2]"', "model: array w: unknown type 'float16'"),
    ('"float64[2]"', "3", 'model.arrays.w is 3: write type and shape such as "float64[64,10]"'),
    ('format = "raw"', 'format = "pickle"', "model.format is 'pickle': use one of npz, npy, safetensors, raw"),
    ('["x.npy"]', '["nothing.npy"]', "files.train is ['nothing.npy']: there is no file"),
    ('["x.npy"]', "[]", "files.train is []: 1 to 64 entries are allowed"),
    ('["x.npy"]', '["x.npy", "./x.npy"]', "two files are named x.npy"),
    ('"y.npy"', '"z.npy"', "files.test_labels is 'z.npy': there is no file"),
    ("pool = 10", 'tolerance = "-1"', "tolerance is '-1': write a decimal number in quotes, 0 or more"),
    ("pool = 10", 'tolerance = "0.0000001"', "with at most 6 decimals"),
    ("pool = 10", "max_loss = 2.5", "max_loss is 2.5: write a decimal number in quotes"),
    ("pool = 10", 'on_cheat = "fine"', "on_cheat is 'fine': use refund or next"),
    ("pool = 10", 'editors = ["alice"]', "not an Ed25519 did:key: 'alice'"),
    ("pool = 10", 'tags = "vision"', "tags is 'vision': write a list of texts"),
    ("pool = 10", 'tags = [""]', "a tag has 0 bytes; 1 to 50 are allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "to", "sentence"), FAULTS)
def test_each_mistake_is_answered_with_one_sentence(folder: Path, change: str, to: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)) as caught:
        read_job_file(write(folder, change, to), RULES, NOW)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="there is no job file"):
        read_job_file(folder / "none.toml", RULES, NOW)


@pytest.mark.parametrize("image", ["python:3.11", "local", "sha256:12", "x@sha256:" + "g" * 64])
def test_an_image_that_may_change_is_refused(folder: Path, image: str) -> None:
    path = write(
        folder,
        'runtime = "wasm"\nmodule = "m.wasm"',
        f'runtime = "docker"\nimage = "{image}"\ntrain=["a"]\npredict=["b"]',
    )
    with pytest.raises(UsageError, match=r"task\.image is"):
        read_job_file(path, RULES, NOW)


def test_a_file_name_that_terms_cannot_carry_is_refused(folder: Path) -> None:
    (folder / "a b.npy").write_bytes(b"")
    with pytest.raises(UsageError, match=r"the name a b\.npy may only have"):
        read_job_file(write(folder, '["x.npy"]', '["a b.npy"]'), TRY_RULES, NOW)


def test_large_files_are_named_by_the_list_of_their_chunks(tmp_path: Path) -> None:
    data = bytes(2**20) + b"rest"
    (tmp_path / "large").write_bytes(data)
    (tmp_path / "full").write_bytes(bytes(2**20))
    (tmp_path / "empty").write_bytes(b"")
    chunks = [Link(codec.compute_blob_id(data[: 2**20])), Link(codec.compute_blob_id(b"rest"))]
    block = codec.encode({"size": len(data), "chunks": list(chunks)})
    assert compute_file_id(tmp_path / "large") == codec.OP_CID_PREFIX + sha256(block).digest()
    assert compute_file_id(tmp_path / "full") == codec.compute_blob_id(bytes(2**20))
    assert compute_file_id(tmp_path / "empty") == codec.compute_blob_id(b"")


@given(st.integers(0, 10**14))
def test_lengths_of_time_survive_writing_and_reading(duration_ms: int) -> None:
    assert parse_duration_ms(format_duration(duration_ms)) == duration_ms


@given(st.integers(0, 2**53 - 1))
def test_losses_survive_writing_and_reading(micros: int) -> None:
    assert parse_micros(format_micros(micros)) == micros


@given(st.text(max_size=12))
def test_any_text_is_a_length_of_time_or_none(text: str) -> None:
    found = parse_duration_ms(text)
    assert found is None or found >= 0
