"""The command line on real processes: a network of two nodes, a job by hand from posting to payment, all exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
JOB = f"""
title = "Digits"
metric = "log_loss"
bounty = 100
stake = 5
pool = 10
bid_for = "BID_FOR"
reveal_for = "4s"
verdict_for = "16s"
max_loss = "2.5"
[task]
runtime = "wasm"
module = "trainer.wasm"
[task.params]
epochs = 4
hidden = 32
batch = 32
scale = "0.0625"
noise = "0.25"
optimizer = "adam"
learning_rate = "0.003"
[task.resources]
memory_mib = 64
disk_mib = 8
seconds = 4
[model]
format = "raw"
arrays = {{ bias1 = "float64[32]", bias2 = "float64[10]", weights1 = "float64[64,32]", weights2 = "float64[32,10]" }}
[files]
code = ["{ROOT}/examples/digits-wasm/trainer.wasm"]
train = ["{ROOT}/examples/digits/data/digits_train_x.npy", "{ROOT}/examples/digits/data/digits_train_y.npy"]
test_features = ["{ROOT}/examples/digits/data/digits_test_x.npy"]
test_labels = "{ROOT}/examples/digits/data/digits_test_y.npy"
"""


class Terminal:
    """Runs `crdtchain` for one data folder, each command a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.serving: subprocess.Popen[str] | None = None

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "node.cli.main", *map(str, words), "--data", str(self.folder)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        return subprocess.Popen(command, text=True, env=environment, cwd=self.folder.parent, **options)

    def call(self, *words: object, code: int = 0) -> str:
        """Run a command to its end; returns stdout."""
        process = self.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate(timeout=90)
        assert process.returncode == code, (words, process.returncode, out, err)
        assert "Traceback" not in err
        if code in (2, 3, 4):
            assert err.splitlines()[-1].startswith("error: "), err
        return out

    def ask(self, *words: object, code: int = 0) -> Any:
        """Run a command with --json; returns the document."""
        return json.loads(self.call(*words, "--json", code=code))

    def serve(self, *words: object) -> dict[str, Any]:
        """Start a node; returns what it says of itself."""
        with (self.folder / "log").open("a") as log:
            self.serving = self.start(
                "serve", "--local", "127.0.0.1:0", *words, "--json", stdout=subprocess.PIPE, stderr=log
            )
        assert self.serving.stdout is not None
        line = self.serving.stdout.readline()
        assert line, (self.folder / "log").read_text()
        return dict(json.loads(line))

    def stop(self) -> int:
        """End the node as Ctrl-C does; returns its exit code."""
        if self.serving is None:
            return 0
        serving, self.serving = self.serving, None
        serving.send_signal(signal.SIGINT)
        try:
            return serving.wait(20)
        finally:
            serving.kill()
            if serving.stdout is not None:
                serving.stdout.close()


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for a truth, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.3)
    return found


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Callable[[str], Terminal]]:
    """Make terminals by name; their nodes end with the test."""
    made: dict[str, Terminal] = {}

    def make(name: str) -> Terminal:
        if name not in made:
            made[name] = Terminal(tmp_path / name)
        return made[name]

    yield make
    for terminal in made.values():
        if terminal.serving is not None:
            terminal.serving.kill()
            terminal.serving.wait()
            if terminal.serving.stdout is not None:
                terminal.serving.stdout.close()


@pytest.fixture
def pair(terminals: Callable[[str], Terminal]) -> tuple[Terminal, Terminal, str]:
    """Found a network; returns alice, its one witness, and bob, both serving, and the URL of alice's peer port."""
    alice, bob = terminals("alice"), terminals("bob")
    dids = {name: terminals(name).ask("init", "--name", name)["did"] for name in ("alice", "bob")}
    grants = [word for did in dids.values() for word in ("--grant", f"{did}=1000")]
    alice.call("network", "create", "--name", "test", "--delta-ms", 300, "--tick-ms", 500, *grants)
    url = alice.serve("--witness", "--listen", "127.0.0.1:0")["peer"]
    bob.call("network", "join", url)
    bob.serve("--peer", url, "--listen", "127.0.0.1:0")
    until(lambda: bob.ask("status")["synced"])
    return alice, bob, url


def write_job(folder: Path, bid_for: str) -> Path:
    path = folder / "job.toml"
    path.write_text(JOB.replace("BID_FOR", bid_for))
    return path


def test_a_job_goes_by_hand_from_posting_to_payment(
    pair: tuple[Terminal, Terminal, str], terminals: Callable[[str], Terminal], tmp_path: Path
) -> None:
    alice, bob, url = pair
    model = tmp_path / "model.raw"
    tried = bob.ask("job", "try", write_job(tmp_path, "22s"), "--seed", 3, "-o", model)
    job = alice.ask("job", "post", tmp_path / "job.toml")["id"]
    short = job[:20]
    until(lambda: any(row["id"] == job and row["certified"] for row in bob.ask("job", "list")), 10)

    bob.call("bid", short, model, "--loss", "1", code=4)
    stake = bob.ask("stake", short)
    bob.call("stake", short, code=4)
    alice.call("stake", short, code=4)
    until(lambda: {row["id"]: row["status"] for row in bob.ask("account")["history"]}[stake["id"]] == "certified", 10)
    bid = bob.ask("bid", short, model)
    assert bid["body"]["loss"] == tried["loss"]
    bob.call("bid", short, model, "--loss", "2.4", code=4)
    bob.call("reveal", bid["id"][:24], code=4)
    assert "leading" in bob.call("job", "show", short)
    alice.call("job", "model", short, "-o", tmp_path / "none", code=1)

    reveals = until(lambda: alice.ask("job", "show", job)["leaderboard"][0]["reveals"], 45)
    bob.call("reveal", bid["id"], code=4)
    bob.call("vote", reveals[0]["id"][:22], "valid", code=4)
    vote = alice.ask("vote", reveals[0]["id"][:22], "valid", "--loss", "0.5")
    assert vote["body"] == {"reveal": reveals[0]["id"], "verdict": "valid", "loss": 500_000}

    watched = alice.ask("job", "watch", short)
    assert watched["phase"] == "decided" and watched["outcome"]["winner"] == bid["id"]
    bob_did = bob.ask("status")["did"]
    assert watched["outcome"]["winner_author"] == bob_did
    until(lambda: bob.ask("status")["balance"] == 1_100 and alice.ask("status")["balance"] == 900, 15)
    bob.call("claim", short, code=4)
    alice.call("job", "model", short, "-o", tmp_path / "won.raw")
    assert (tmp_path / "won.raw").read_bytes() == model.read_bytes()

    until(lambda: alice.ask("status")["heads_digest"] == bob.ask("status")["heads_digest"], 15)
    reports = [bob.ask("audit", source) for source in (url, alice.folder, bob.folder)]
    car = tmp_path / "all.car"
    assert alice.ask("export", car, "--blobs")["blobs"] == 6
    reports.append(bob.ask("audit", car, "--job", short))
    status = alice.ask("status")
    for report in reports:
        assert report["ok"] and report["accounts"][bob_did] == 1_100
        assert (report["heads_digest"], report["state_digest"]) == (status["heads_digest"], status["state_digest"])
        assert [row["outcome"] for row in report["jobs"]] == ["decided"]

    carol = terminals("carol")
    done = carol.ask("import", car)
    assert (done["added"], done["blobs"], done["rejected"]) == (status["ops"], 6, [])
    assert carol.ask("audit", carol.folder)["state_digest"] == status["state_digest"]
    assert bob.ask("import", car)["known"] == status["ops"]
    one_job = alice.ask("export", tmp_path / "job.car", "--job", short)
    assert 0 < one_job["ops"] <= status["ops"]
    assert bob.ask("audit", tmp_path / "job.car")["jobs"][0]["outcome"] == "decided"
    assert alice.ask("export", tmp_path / "until.car", "--until", bid["id"])["ops"] < one_job["ops"]
    assert bob.ask("audit", tmp_path / "until.car")["ok"]

    assert bob.stop() == 0
    assert alice.stop() == 0
    offline = alice.ask("status")
    assert offline["state_digest"] == status["state_digest"] and not offline["running"]


def test_credits_go_to_whom_they_are_given_and_newcomers_begin_with_them(
    pair: tuple[Terminal, Terminal, str], terminals: Callable[[str], Terminal], tmp_path: Path
) -> None:
    alice, bob, url = pair
    carol = terminals("carol")
    did = carol.ask("init", "--name", "carol")["did"]
    carol.call("network", "join", url)
    carol.serve("--peer", url)
    bob.call("transfer", did, 5000, code=4)
    bob.call("transfer", "z6MkNobody", 5, code=2)
    assert bob.ask("transfer", did, 30, "--memo", "hello")["body"]["memo"] == "hello"
    until(lambda: carol.ask("status")["balance"] == 30, 20)
    account = until(lambda: (found := alice.ask("account", did[8:24]))["name"] == "carol" and found, 20)
    assert [row["kind"] for row in account["history"]] == ["claim"]
    bob.call("invite", did, 20)
    until(lambda: carol.ask("status")["balance"] == 50, 20)
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(2**20 + 5))
    cid = alice.ask("blob", "put", blob)["cid"]
    assert carol.ask("blob", "get", cid, "-o", tmp_path / "copy")["size"] == 2**20 + 5
    assert (tmp_path / "copy").read_bytes() == blob.read_bytes()
    carol.call("blob", "get", "bafkrei" + cid[7:][::-1], "-o", tmp_path / "copy", code=2)
    assert carol.stop() == 0
    carol.call("job", "list", code=3)
    (carol.folder / "node.json").write_text(json.dumps({"local": "http://127.0.0.1:9"}))
    carol.call("job", "list", code=3)


def test_a_node_with_a_worker_serves_and_a_worker_beside_a_node_is_interrupted(
    pair: tuple[Terminal, Terminal, str], terminals: Callable[[str], Terminal], tmp_path: Path
) -> None:
    alice, bob, url = pair
    (tmp_path / "verify.toml").write_text('verify = "only"\nruntimes = ["wasm"]\n')
    (tmp_path / "train.toml").write_text('min_time_left_s = 1\nruntimes = ["wasm"]\nverify = "no"\n')
    alice.stop()
    port = url.rpartition(":")[2]
    alice.serve("--witness", "--listen", f"127.0.0.1:{port}", "--work", tmp_path / "verify.toml", "--welcome", 200)
    dave = terminals("dave")
    dave.call("init")
    dave.call("network", "join", url)
    dave.serve("--peer", url, "--listen", "127.0.0.1:0")
    until(lambda: dave.ask("status")["balance"] == 200, 30)
    with (tmp_path / "work.log").open("w") as log:
        # As a shell starts what runs in the background.
        worker = bob.start(
            "work",
            tmp_path / "train.toml",
            stdout=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        )
        try:
            job = dave.ask("job", "post", write_job(tmp_path, "14s"))["id"]
            last = dave.ask("job", "watch", job)
        finally:
            worker.send_signal(signal.SIGINT)
            assert worker.wait(20) == 130
    assert last["phase"] == "decided", (tmp_path / "work.log").read_text()
    assert last["outcome"]["winner_author"] == bob.ask("status")["did"]
    votes = [vote for bid in last["leaderboard"] for reveal in bid["reveals"] for vote in reveal["votes"]]
    assert [vote["verdict"] for vote in votes] == ["valid"]
    until(lambda: alice.ask("status")["balance"] == 1_000 - 200 + 10, 15)
    dave.call("work", tmp_path / "verify.toml", "--nonsense", code=2)
    assert "Interrupted." in (tmp_path / "work.log").read_text()


def test_two_processes_never_share_a_folder(pair: tuple[Terminal, Terminal, str]) -> None:
    alice, bob, _ = pair
    alice.call("serve", "--local", "127.0.0.1:0", code=2)
    bob.call("network", "create", "--name", "other", code=2)
    bob.call("network", "join", "http://127.0.0.1:9", code=3)
    assert bob.ask("peers")["connected"][0]["node"] == alice.ask("status")["did"]
    findings = {row["name"]: row["ok"] for row in bob.ask("doctor")["findings"]}
    assert findings["node"] and findings["wasm"] and findings["signatures"]
