"""The demonstration through the real command line: six processes, real training, every scenario to its exact end.

Each run takes a bit more than a minute, most of it waiting for deadlines. So the runs that were selected are started
one after the other, half a minute apart, and overlap: while one waits for votes, the next one trains.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from crdtchain.adapters.auditing import audit_source
from crdtchain.adapters.models import parse_model
from crdtchain.learning.schema import ModelSchema
from node.demo.plan import EXAMPLES, make_plan
from node.jobfile import load_toml
from node.worker.sandbox.docker import describe_process
from tests.conftest import has_part

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(480)]

ROOT: Final = Path(__file__).parents[2]
APART_S: Final = 36
RUN_S_MAX: Final = 200
NAMES: Final = ("alice", "bob", "carol", "dave", "vera", "victor")

RUNS: Final[dict[str, tuple[str, ...]]] = {
    "honest-docker": ("--runtime", "docker", "--seed", "11"),
    "honest-wasm": ("--runtime", "wasm", "--seed", "12"),
    "refund": ("--scenario", "cheat", "--runtime", "wasm", "--seed", "13"),
    "next": ("--scenario", "cheat", "--on-cheat", "next", "--runtime", "wasm", "--seed", "14"),
    "offline": ("--scenario", "offline", "--runtime", "wasm", "--seed", "15"),
}


T = TypeVar("T")


def needs(run: str) -> Callable[[T], T]:
    """Mark a test with the run that it looks at, so that the run can be started early."""

    def mark(test: T) -> T:
        test.needs_run = run  # type: ignore[attr-defined]
        return test

    return mark


@dataclass(frozen=True, slots=True)
class Ended:
    """A demonstration that has ended; `folder` is what --keep kept."""

    code: int
    out: str
    err: str
    folder: Path
    seconds: float

    @property
    def shown(self) -> dict[str, Any]:
        """The one JSON document."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    def credits(self) -> dict[str, int]:
        """Name to credits."""
        return {name: member["credits"] for name, member in self.shown["members"].items()}

    def did(self, name: str) -> str:
        return str(self.shown["members"][name]["did"])


def start_demo(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "node.cli.main", "demo", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Ended]]:
    """Start all runs that the selected tests need, some time apart; gives each when it has ended."""
    base = tmp_path_factory.mktemp("demo")
    needed = (getattr(getattr(item, "obj", None), "needs_run", None) for item in request.session.items)
    wanted = [run for run in dict.fromkeys(needed) if run and (run != "honest-docker" or has_part("docker"))]
    done: dict[str, Ended] = {}
    threads: dict[str, threading.Thread] = {}
    processes: list[subprocess.Popen[str]] = []
    is_over = threading.Event()

    def play(name: str, wait_s: float) -> None:
        if is_over.wait(wait_s):
            return
        started = time.monotonic()
        process = start_demo(*RUNS[name], "--keep", str(base / name), "--json")
        processes.append(process)
        try:
            out, err = process.communicate(timeout=RUN_S_MAX)
        except subprocess.TimeoutExpired:
            process.terminate()
            out, err = process.communicate()
        done[name] = Ended(process.returncode, out, err, base / name, time.monotonic() - started)

    for place, name in enumerate(wanted):
        threads[name] = threading.Thread(target=play, args=(name, place * APART_S), daemon=True)
        threads[name].start()

    def get(name: str) -> Ended:
        threads[name].join()
        print(done[name].err, file=sys.stderr)
        return done[name]

    yield get
    is_over.set()
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for thread in threads.values():
        thread.join(30)


def find_processes(word: str) -> list[int]:
    """Return the ids of processes with a word in their command line, this one aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def check_common(ended: Ended, scenario: str, runtime: str) -> dict[str, Any]:
    """Check what holds for every scenario; returns the document."""
    assert ended.code == 0, ended.err
    shown = ended.shown
    assert shown["ok"] is True and shown["faults"] == []
    assert (shown["scenario"], shown["runtime"]) == (scenario, runtime)
    assert shown["seconds"] < 120
    assert set(shown["members"]) == set(NAMES)
    assert sum(ended.credits().values()) == 1_190 == sum(shown["accounts"].values())
    assert {ended.did(name): amount for name, amount in ended.credits().items()} == shown["accounts"]
    assert set(shown["digests"]) == set(NAMES) and set(shown["digests"].values()) == {shown["audit"]["state_digest"]}
    assert shown["audit"]["ok"] is True and shown["audit"]["equivocations"] == []
    assert len(shown["jobs"]) == 1 and shown["jobs"][0]["certified"] is True
    assert find_processes(str(ended.folder)) == []
    return shown


async def check_folders(ended: Ended) -> None:
    """Audit every node's data folder: all come to one state."""
    reports = [await audit_source(ended.folder / name) for name in NAMES]
    assert all(report.ok for report in reports)
    assert {report.state_digest for report in reports} == set(ended.shown["digests"].values())


def check_honest(ended: Ended, runtime: str) -> None:
    shown = check_common(ended, "honest", runtime)
    losses = [loss for _, loss in shown["bids"]]
    assert len(losses) >= 3 and all(later < earlier for earlier, later in pairwise(losses))
    assert len({name for name, _ in shown["bids"]}) >= 2
    winner = next(name for name in NAMES if ended.did(name) == shown["jobs"][0]["winner_author"])
    assert winner == shown["bids"][-1][0] and shown["jobs"][0]["loss"] == losses[-1]
    expected = {"alice": 890, "bob": 50, "carol": 50, "dave": 50, "vera": 25, "victor": 25}
    assert ended.credits() == {**expected, winner: 150}
    check_model(shown, runtime)


def check_model(shown: dict[str, Any], runtime: str) -> None:
    """Check that the winning model is there, is what the job asked for, and is good."""
    example = load_toml(EXAMPLES / ("digits" if runtime == "docker" else "digits-wasm") / "job.toml", "job file")
    schema = ModelSchema.parse(example["model"]["format"], example["model"]["arrays"])
    parse_model(Path(shown["model"]["file"]).read_bytes(), schema)
    assert shown["model"]["test_accuracy"] >= 0.93
    assert shown["model"]["loss"] <= shown["jobs"][0]["loss"] + 1


@pytest.mark.docker
@needs("honest-docker")
def test_honest_workers_beat_each_other_in_docker_and_the_best_is_paid(stage: Callable[[str], Ended]) -> None:
    check_honest(stage("honest-docker"), "docker")


@pytest.mark.asyncio
@needs("honest-wasm")
async def test_honest_workers_beat_each_other_in_wasm_and_the_best_is_paid(stage: Callable[[str], Ended]) -> None:
    ended = stage("honest-wasm")
    check_honest(ended, "wasm")
    await check_folders(ended)


@needs("refund")
def test_a_cheat_loses_its_stake_to_the_voters_is_banned_and_the_bounty_goes_back(
    stage: Callable[[str], Ended],
) -> None:
    ended = stage("refund")
    shown = check_common(ended, "cheat", "wasm")
    assert shown["jobs"][0]["winner"] is None and shown["jobs"][0]["outcome"] == "refunded"
    assert ended.credits() == {"alice": 990, "bob": 50, "carol": 45, "dave": 45, "vera": 30, "victor": 30}
    assert shown["model"] == {"file": None, "test_accuracy": None, "loss": None}
    assert "dave cheated and is banned" in ended.err
    assert ended.err.count("votes cheat.") == 2


@needs("next")
def test_with_next_the_best_honest_bid_wins_behind_a_cheat_and_an_unrevealed_one(stage: Callable[[str], Ended]) -> None:
    ended = stage("next")
    shown = check_common(ended, "cheat", "wasm")
    assert shown["jobs"][0]["winner_author"] == ended.did("bob")
    assert ended.credits() == {"alice": 890, "bob": 150, "carol": 45, "dave": 45, "vera": 30, "victor": 30}
    check_model(shown, "wasm")


@pytest.mark.asyncio
@needs("offline")
async def test_who_comes_back_in_time_wins_and_who_comes_back_late_changes_nothing(
    stage: Callable[[str], Ended],
) -> None:
    ended = stage("offline")
    shown = check_common(ended, "offline", "wasm")
    assert shown["jobs"][0]["winner_author"] == ended.did("carol")
    assert ended.credits() == {"alice": 890, "bob": 50, "carol": 150, "dave": 50, "vera": 25, "victor": 25}
    assert "dave      the bid of" in ended.err and "is late" in ended.err
    check_model(shown, "wasm")
    await check_folders(ended)


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """Read a process's stdout up to a line with a word."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return "".join(lines)
    raise AssertionError(f"{word!r} did not come: {''.join(lines)} {process.stderr and process.stderr.read()}")


def wait_gone(word: str, seconds: float = 20) -> list[int]:
    """Return which processes with a word in their command line are left after some time."""
    deadline = time.monotonic() + seconds
    while (found := find_processes(word)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_leaves_no_process_and_no_folder(number: signal.Signals, tmp_path: Path) -> None:
    process = start_demo("--runtime", "wasm", TMPDIR=str(tmp_path))
    read_until(process, "trains a model")
    assert find_processes(str(tmp_path))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Interrupted; all nodes are stopped." in err
    assert find_processes(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_no_node_outlives_a_demonstration_that_was_killed(tmp_path: Path) -> None:
    process = start_demo("--runtime", "wasm", "--keep", str(tmp_path / "kept"))
    read_until(process, "trains a model")
    process.kill()
    process.communicate(timeout=20)
    assert wait_gone(str(tmp_path)) == []


@pytest.mark.docker
def test_an_interrupted_demonstration_leaves_no_container(tmp_path: Path) -> None:
    process = start_demo("--runtime", "docker", TMPDIR=str(tmp_path))
    read_until(process, "trains a model")
    time.sleep(1)
    owners = {describe_process(pid) for pid in find_processes(str(tmp_path))}
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and len(owners) == 6
    command = ["docker", "ps", "--all", "--format", '{{.Label "crdtchain.owner"}}']
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert not owners & set(listed.splitlines())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--keep", "{here}"), 2, "is not an empty folder"),
        (("--scenario", "gamble"), 2, "gamble"),
        (("--seed", "-1"), 2, "seed"),
        (("--runtime", "docker"), 5, "ocker"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_one_sentence(
    arguments: tuple[str, ...], code: int, words: str, tmp_path: Path
) -> None:
    (tmp_path / "something").write_text("")
    nowhere = f"unix://{tmp_path}/docker.sock"
    process = start_demo(*(word.format(here=tmp_path) for word in arguments), DOCKER_HOST=nowhere)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_auto_takes_wasm_where_no_docker_daemon_answers(tmp_path: Path) -> None:
    process = start_demo(DOCKER_HOST=f"unix://{tmp_path}/docker.sock", TMPDIR=str(tmp_path))
    told = read_until(process, "posts")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert "WebAssembly" in told and process.returncode == 130


def test_the_same_seed_draws_the_same_training_seeds_and_another_one_others() -> None:
    from node.demo.tactics import make_draw

    first, again, other = make_draw(7, "bob"), make_draw(7, "bob"), make_draw(8, "bob")
    drawn = [first() for _ in range(20)]
    assert drawn == [again() for _ in range(20)]
    assert not set(drawn) & {other() for _ in range(20)}
    assert len(set(drawn)) == 20


@pytest.mark.parametrize("scenario", ["honest", "cheat", "offline"])
@pytest.mark.parametrize("on_cheat", ["refund", "next"])
def test_every_plan_has_four_witnesses_and_the_poster_among_them(scenario: str, on_cheat: str) -> None:
    plan = make_plan(scenario, "wasm", 1, on_cheat)
    assert [member.name for member in plan.members] == list(NAMES)
    assert {member.name for member in plan.members if member.is_witness} == {"alice", "bob", "vera", "victor"}
    assert plan.granted == 1_190
