"""The docker sandbox on a real daemon: what works, how each status comes about, and what each setting stops."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.worker.sandbox.base import Mode, Progress, RunResult, Status
from node.worker.sandbox.docker import DockerSandbox
from node.worker.sandbox.docker_spec import JOB_UID
from node.worker.sandbox.image import build_trainer_image
from tests.integration.docker_fixture import Runner, daemon, find_leftovers, runner, trainer_image

__all__ = ["daemon", "runner", "trainer_image"]  # fixtures
pytestmark = pytest.mark.docker
MIB = 1024 * 1024
ROOT = Path(__file__).parents[2]
SLEEP = "import time; print('up', flush=True); time.sleep(60)"


# --- what works -------------------------------------------------------------------------------------------------------

TRAIN = """
import json, os
import numpy as np
x = np.load("/job/in/data/train/x.npy")
params = json.load(open("/job/in/hyperparameters.json"))
for epoch in range(params["epochs"]):
    print(json.dumps({"epoch": epoch, "loss": 1 / (epoch + 1), "rows": len(x)}), flush=True)
np.savez("/job/out/model/model.npz", mean=x.mean(axis=0))
json.dump({"in": sorted(os.listdir("/job/in")), "data": os.listdir("/job/in/data")}, open("/job/out/metrics.json", "w"))
open("/job/out/scratch", "w").write("not asked for")
"""
PREDICT = """
import json, os
import numpy as np
model = np.load("/job/in/model/model.npz")
x = np.load("/job/in/data/test/x.npy")
np.save("/job/out/predictions.npy", x - model["mean"])
json.dump({"in": sorted(os.listdir("/job/in")), "data": os.listdir("/job/in/data"),
           "job": json.load(open("/job/in/job.json"))}, open("/job/out/metrics.json", "w"))
"""


@pytest.mark.asyncio
async def test_a_model_is_trained_and_then_predicts(runner: Runner, tmp_path: Path) -> None:
    import numpy as np

    x = np.arange(12.0).reshape(4, 3)
    np.save(tmp_path / "x.npy", x)
    files = {"x.npy": tmp_path / "x.npy"}
    heard: list[Progress] = []
    given: dict[str, Any] = {"params": {"epochs": 2}, "train": files, "features": files, "expect": ("model.npz",)}
    trained = await runner.run(TRAIN, on_progress=heard.append, **given)
    assert (trained.status, trained.exit_code, trained.signal) == (Status.OK, 0, None), trained
    assert sorted(trained.files) == ["metrics.json", "model/model.npz"]
    assert json.loads(trained.files["metrics.json"]) == {
        "in": ["code", "data", "hyperparameters.json", "job.json"],
        "data": ["train"],
    }
    assert heard == [Progress(0, 1.0, {"rows": 4}), Progress(1, 0.5, {"rows": 4})]
    assert trained.out_bytes > len(trained.files["model/model.npz"]) and trained.log_bytes > 0

    (tmp_path / "model.npz").write_bytes(trained.files["model/model.npz"])
    model = {"model.npz": tmp_path / "model.npz"}
    predicted = await runner.run(PREDICT, Mode.PREDICT, train=files, features=files, model=model, job_json=b'{"a":1}')
    assert predicted.status is Status.OK, predicted
    assert (np.load(io.BytesIO(predicted.files["predictions.npy"])) == x - x.mean(axis=0)).all()
    assert json.loads(predicted.files["metrics.json"]) == {
        "in": ["code", "data", "hyperparameters.json", "job.json", "model"],
        "data": ["test"],
        "job": {"a": 1},
    }


@pytest.mark.asyncio
async def test_three_runs_at_once_do_not_meet(runner: Runner) -> None:
    code = "import os, time; open('/job/out/model/m', 'w').write(os.environ['JOB_ID']); time.sleep(0.3)"
    results = await asyncio.gather(*(runner.run(code, job_id=f"job{n}", expect=("m",)) for n in range(3)))
    assert [result.files["model/m"] for result in results] == [b"job0", b"job1", b"job2"]


@pytest.mark.asyncio
async def test_a_busy_program_is_metered(runner: Runner) -> None:
    code = "import time; end = time.time() + 1.5; block = bytearray(40 << 20)\nwhile time.time() < end: pass"
    result = await runner.run(code)
    assert result.status is Status.OK
    assert 1400 <= result.wall_ms < 8000 and 300 <= result.cpu_ms <= result.wall_ms
    assert 40 * MIB <= result.peak_memory_bytes <= 128 * MIB


ORDINARY = """
import asyncio, hashlib, json, multiprocessing, sqlite3, subprocess, sys, tempfile, threading
import numpy as np

async def shout():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(7)", stdout=subprocess.PIPE)
    return int((await process.communicate())[0])

def square(x):
    return x * x

if __name__ == "__main__":
    a = np.random.default_rng(0).normal(size=(200, 200))
    assert np.allclose(np.linalg.inv(a) @ a, np.eye(200))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    with multiprocessing.Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    assert asyncio.run(shout()) == 7
    with tempfile.TemporaryFile() as file:
        np.save(file, a)
    with sqlite3.connect("/tmp/a.db") as db:
        assert db.execute("select 1").fetchone() == (1,)
    threads = [threading.Thread(target=np.dot, args=(a, a)) for _ in range(8)]
    [thread.start() for thread in threads] and [thread.join() for thread in threads]
    open("/job/out/model/m", "w").write("fine")
"""


@pytest.mark.asyncio
async def test_ordinary_programs_work_under_the_filter(runner: Runner) -> None:
    result = await runner.run(ORDINARY, memory_mib=512, expect=("m",))
    assert result.status is Status.OK, result


@pytest.mark.asyncio
async def test_the_daemon_is_described(runner: Runner, daemon: Any) -> None:
    info = await runner.sandbox.check()
    assert info.usable and info.version == daemon.version()["Version"]


@pytest.mark.asyncio
async def test_without_a_daemon_check_says_what_to_do(tmp_path: Path) -> None:
    sandbox = DockerSandbox(f"unix://{tmp_path}/none.sock")
    info = await sandbox.check()
    await sandbox.close()
    assert not info.usable and "Install Docker" in info.hint


@pytest.mark.asyncio
async def test_images_are_known_by_digest_and_never_by_tag(runner: Runner, odd_image: str, daemon: Any) -> None:
    assert await runner.sandbox.has_image(odd_image)
    assert not await runner.sandbox.has_image("sha256:" + "0" * 64)
    assert not await runner.sandbox.has_image("trainer@sha256:" + "0" * 64)
    daemon.tag(odd_image, "crdtchain-test", "tagged")  # the tag goes with the image
    for name in ("crdtchain-test:tagged", odd_image.removeprefix("sha256:"), odd_image[:19]):
        assert not await runner.sandbox.has_image(name)
        result = await runner.run("", image=name)
        assert result.status is Status.POLICY_REFUSED and "pinned" in result.reason


def test_the_trainer_image_is_the_same_each_time(daemon: Any, trainer_image: str, tmp_path: Path) -> None:
    built = build_trainer_image(tmp_path / "again.tar")
    assert built.id == trainer_image
    assert list(built.layers) == daemon.inspect_image(trainer_image)["RootFS"]["Layers"]
    with tarfile.open(tmp_path / "again.tar") as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None and json.load(manifest)[0]["RepoTags"] is None


# --- each status ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "exit_code", "words"),
    [
        ("raise SystemExit(3)", Status.JOB_ERROR, 3, "exit code 3"),
        ("open('/job/out/failure','w').write('no\\x1b[1m data'); exit(1)", Status.JOB_ERROR, 1, "no [1m data"),
        ("raise SystemExit(75)", Status.JOB_ERROR, 75, "tried again"),
        ("import os; os.abort()", Status.CRASHED, 134, "signal 6"),
        ("import ctypes; ctypes.string_at(0)", Status.CRASHED, 139, "signal 11"),
        ("import os, signal; os.kill(os.getpid(), 9)", Status.CRASHED, 137, "signal 9"),
        ("pass", Status.BAD_OUTPUT, 0, "model/m"),
        ("import os; os.symlink('/etc/passwd', '/job/out/model/m')", Status.BAD_OUTPUT, 0, "plain file"),
        ("import os; os.mkfifo('/job/out/model/m')", Status.BAD_OUTPUT, 0, "plain file"),
        ("import os; os.mkdir('/job/out/model/m')", Status.BAD_OUTPUT, 0, "model/m"),
        ("import os; os.rmdir('/job/out/model'); os.symlink('/etc', '/job/out/model')", Status.BAD_OUTPUT, 0, "plain"),
        ("import os; p='/job/out/model/'; open(p+'a','w'); os.link(p+'a', p+'m')", Status.BAD_OUTPUT, 0, "plain file"),
        ("open('/job/out/metrics.json','w').write(' ' * 65537)", Status.OUTPUT_LIMIT, 0, "metrics.json"),
        ("for n in 'ab': open(f'/job/out/{n}','w').truncate(8 << 20)", Status.OUTPUT_LIMIT, 0, "larger"),
        ("open('/job/out/model/m','wb').write(bytes(9 << 20))", Status.OUTPUT_LIMIT, 1, "8 MiB"),
        ("[open(f'/job/out/{n}', 'w').close() for n in range(5000)]", Status.OUTPUT_LIMIT, 1, "filled"),
        ("import numpy; x = [numpy.ones(1 << 20) for _ in range(99)]", Status.OOM, 137, "128 MiB"),
    ],
)  # fmt: skip
@pytest.mark.asyncio
async def test_an_end_has_its_status(runner: Runner, code: str, status: Status, exit_code: int, words: str) -> None:
    result = await runner.run(code, expect=("m",))
    assert (result.status, result.exit_code) == (status, exit_code), result
    assert words in result.reason and result.files == {}
    assert result.signal == (exit_code - 128 if exit_code > 128 else None)


@pytest.mark.asyncio
async def test_a_missing_program_is_the_jobs_error(runner: Runner) -> None:
    result = await runner.run("", command=("/no/such/program",))
    assert result.status is Status.JOB_ERROR and result.exit_code == 127, result


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpus": 1024}, "cores"),
        ({"memory_mib": 1 << 24}, "memory"),
        ({"gpus": 1}, "GPUs"),
        ({"command": ()}, "program"),
        ({"command": ("python", "a\0b")}, "NUL"),
        ({"expect": ("../m",)}, "not plain"),
    ],
)
@pytest.mark.asyncio
async def test_what_can_not_be_granted_is_refused(runner: Runner, changes: dict[str, Any], words: str) -> None:
    result = await runner.run("", **changes)
    assert result.status is Status.POLICY_REFUSED and words in result.reason


@pytest.mark.parametrize("where", ["stdout", "stderr"])
@pytest.mark.asyncio
async def test_a_program_that_prints_without_end_is_killed(runner: Runner, where: str) -> None:
    result = await runner.run(f"import sys\nwhile True: sys.{where}.write('x' * 1000)")
    assert result.status is Status.LOG_LIMIT, result
    assert MIB < result.log_bytes <= MIB + 64 * 1024 and len(result.log_tail) <= 8192


@pytest.mark.asyncio
async def test_garbage_on_stdout_is_just_log(runner: Runner) -> None:
    lines = ['{"epoch": 1, "loss": NaN}', '{"epoch": 1, "loss": 1e999}', '{"epoch": -1, "loss": 1}', "{" * 3000, "[1]"]
    lines += [
        '{"epoch": 1, "loss": 2, "pad": "' + "x" * 5000 + '"}',
        '{"epoch": true, "loss": 1}',
        '{"epoch": 5, "loss": 2}',
    ]
    code = f"import sys\nfor line in {lines!r}: print(line)\nsys.stdout.buffer.write(b'\\xff\\x1b]0;x\\x07\\n')"
    heard: list[Progress] = []
    result = await runner.run(code, on_progress=heard.append)
    assert result.status is Status.OK and heard == [Progress(5, 2.0)]
    assert "\x1b" not in result.log_tail and "\x07" not in result.log_tail


# --- time -------------------------------------------------------------------------------------------------------------

CATCH = """
import signal, sys, time
def stop(*_):
    open("/job/out/model/m", "w").write("best so far")
    open("/job/out/predictions.npy", "w").write("half")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
time.sleep(60)
"""


@pytest.mark.asyncio
async def test_a_training_that_saves_when_asked_to_stop_counts(runner: Runner) -> None:
    result = await runner.run(CATCH, seconds=3, expect=("m",))
    assert (result.status, result.exit_code) == (Status.OK, 0), result
    assert result.files["model/m"] == b"best so far" and 2500 <= result.wall_ms < 3000


@pytest.mark.asyncio
async def test_a_prediction_that_was_asked_to_stop_is_not_whole(runner: Runner) -> None:
    result = await runner.run(CATCH, Mode.PREDICT, seconds=2)
    assert (result.status, result.files) == (Status.TIMEOUT, {})


@pytest.mark.asyncio
async def test_a_program_that_does_not_heed_sigterm_is_killed(runner: Runner) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
    result = await runner.run(code, seconds=2)
    assert (result.status, result.signal) == (Status.TIMEOUT, 9) and 1900 <= result.wall_ms < 5000


@pytest.mark.asyncio
async def test_a_plain_program_ends_at_its_limit(runner: Runner) -> None:
    result = await runner.run(SLEEP, seconds=2)
    assert (result.status, result.signal) == (Status.TIMEOUT, 15)


@pytest.mark.asyncio
async def test_children_in_the_background_end_with_the_program(runner: Runner) -> None:
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1)
        open("/job/out/late", "w").write("x" * 1000)
        time.sleep(60)
    os._exit(0)
open("/job/out/model/m", "w").write("done")
"""
    result = await runner.run(code, expect=("m",))
    assert result.status is Status.OK and result.wall_ms < 5000 and result.out_bytes == 4


@pytest.mark.asyncio
async def test_a_run_can_be_cancelled(runner: Runner) -> None:
    cancel = asyncio.Event()
    asyncio.get_running_loop().call_later(1.2, cancel.set)
    result = await runner.run(SLEEP, cancel=cancel)
    assert result.status is Status.CANCELLED and result.wall_ms < 8000
    assert (await runner.run(SLEEP, cancel=cancel)).status is Status.CANCELLED


@pytest.mark.asyncio
async def test_a_caller_that_gives_up_leaves_nothing(runner: Runner, daemon: Any) -> None:
    spec = runner.spec(SLEEP)
    task = asyncio.create_task(runner.sandbox.run(spec))
    await asyncio.sleep(0.8)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert find_leftovers(daemon, spec.run_id) == []


# --- what each setting stops, seen from inside ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def probed(daemon: Any, trainer_image: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program sees, while the operator's environment and docker configuration hold secrets."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "config.json").write_text(json.dumps({"proxies": {"default": {"httpProxy": "http://me:secret@proxy"}}}))
    code = Path(__file__).with_name("docker_probe.py").read_text()

    async def probe() -> RunResult:
        sandbox = DockerSandbox()
        try:
            return await Runner(sandbox, daemon, trainer_image, folder).run(code, memory_mib=512)
        finally:
            await sandbox.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_CONFIG", str(folder))
        patch.setenv("SECRET_OF_THE_HOST", "x")
        result = asyncio.run(probe())
    assert result.status is Status.OK, result
    seen = json.loads(result.files["metrics.json"])
    assert isinstance(seen, dict)
    return seen


def test_the_environment_is_exactly_the_contracts(probed: dict[str, Any]) -> None:
    assert probed["env"] == {
        "JOB_ID": "try", "JOB_MODE": "train", "JOB_SEED": "7", "JOB_IN": "/job/in", "JOB_OUT": "/job/out",
        "JOB_DEADLINE_S": "20", "HOME": "/tmp", "TZ": "UTC", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }  # fmt: skip
    assert probed["argv"] == ["/job/in/code/main.py"] and probed["cwd"] == "/tmp" and probed["hostname"] == "job"


def test_the_program_is_nobody(probed: dict[str, Any]) -> None:
    assert probed["ids"] == [[JOB_UID] * 3, [JOB_UID] * 3, []] or probed["ids"][2] == [JOB_UID]
    assert JOB_UID not in (0, 65534) and probed["setuid"] == "EPERM"


def test_there_are_no_capabilities_and_no_new_privileges(probed: dict[str, Any]) -> None:
    assert all(int(probed["status"][name], 16) == 0 for name in ("CapEff", "CapPrm", "CapBnd", "CapInh"))
    assert probed["status"]["NoNewPrivs"].strip() == "1"
    assert probed["mknod"] == "EPERM"


def test_the_system_call_filter_is_on(probed: dict[str, Any]) -> None:
    assert probed["status"]["Seccomp"].strip() == "2"
    calls = probed["syscalls"]
    assert calls.pop("clone3") == "ENOSYS"
    assert len(calls) >= 16 and set(calls.values()) == {"EPERM"}, calls


def test_there_is_no_network(probed: dict[str, Any]) -> None:
    assert probed["interfaces"] == ["lo"]
    assert probed["internet"] == "ENETUNREACH" and probed["internet6"] in (
        "ENETUNREACH",
        "EADDRNOTAVAIL",
        "EAFNOSUPPORT",
    )
    allowed = {"1", "2"}  # AF_UNIX, AF_INET; not netlink, packet, alg, vsock
    assert {family for family, outcome in probed["sockets"].items() if outcome == "done"} == allowed
    assert "nameserver 127.0.0.1" in probed["resolver"] and "search" not in probed["resolver"]


def test_nothing_but_tmp_and_out_can_be_written(probed: dict[str, Any]) -> None:
    assert probed["read_only"] == {"/": True, "/usr": True, "/job/in": True}
    assert set(probed["write"].values()) <= {"EROFS", "EACCES", "EPERM", "ENOENT"}, probed["write"]
    assert probed["chown_in"] in ("EROFS", "EPERM")
    writable = {place for place, (kind, options) in probed["mounts"].items() if options.startswith("rw")}
    disks = {place for place in writable if probed["mounts"][place][0] not in ("tmpfs", "proc", "devpts", "mqueue")}
    assert disks == set(), "a mount of the host's disk can be written to"


def test_scratch_space_is_small_and_runs_nothing(probed: dict[str, Any]) -> None:
    for place in ("/tmp", "/job/out", "/dev/shm"):
        assert {"noexec", "nosuid", "nodev"} <= set(probed["mounts"][place][1].split(",")), place
    assert probed["exec_tmp"] == "EACCES"
    written, reason = probed["tmp_bytes"]
    assert written <= 8 * MIB and reason in ("ENOSPC", "EFBIG")
    files, reason = probed["tmp_files"]
    assert 3000 < files <= 4096 and reason == "ENOSPC"
    assert probed["shm_bytes"] <= 16 * MIB


def test_processes_and_open_files_are_counted(probed: dict[str, Any]) -> None:
    forks, reason = probed["forks"]
    assert 100 < forks < 256 and reason == "EAGAIN"
    assert probed["limits"]["RLIMIT_NOFILE"] == [1024, 1024] and probed["limits"]["RLIMIT_CORE"] == [0, 0]
    assert probed["limits"]["RLIMIT_FSIZE"] == [8 * MIB, 8 * MIB]


def test_the_program_sees_only_its_own_processes(probed: dict[str, Any]) -> None:
    assert probed["init"] == "docker-init" and probed["processes"] == 2
    assert probed["oom_score_adj"] == "1000"
    assert probed["kernel_log"] in ("EPERM", "ENOENT")
    assert set(probed["devices"]) <= {
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    }  # fmt: skip


@pytest.mark.asyncio
async def test_the_processor_share_is_limited(runner: Runner) -> None:
    code = """
import os, time
end = time.time() + 1.5
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        while time.time() < end: pass
        os._exit(0)
    children.append(child)
for child in children: os.waitpid(child, 0)
used = sum(os.times()[2:4])
try:
    quota, period = open("/sys/fs/cgroup/cpu.max").read().split()
except OSError:
    quota, period = (open(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").read() for name in ("quota", "period"))
open("/job/out/model/cpu", "w").write(f"{used} {quota} {period}")
"""
    result = await runner.run(code, expect=("cpu",))
    assert result.status is Status.OK, result
    used, quota, period = map(float, result.files["model/cpu"].split())
    assert quota == period, "one core, though this machine may have been too busy to give more"
    assert used < 1.5 * 1.35


@pytest.fixture(scope="module")
def odd_image(daemon: Any, trainer_image: str) -> Iterator[str]:
    """An image that declares all it can: volumes, environment, entry point, health check, user, folder."""
    base = daemon.create_container(trainer_image, ["python"])["Id"]
    conf = {
        "Env": ["PATH=/usr/local/bin:/opt/bin", "LEAK=1", "PYTHONPATH=/job/out", "LD_PRELOAD=/none.so"],
        "Entrypoint": ["/no/such/entry"],
        "Cmd": ["nothing"],
        "User": "0",
        "WorkingDir": "/root",
        "Volumes": {"/data": {}, "/var/lib/db": {}, "/tmp": {}},
        "Healthcheck": {"Test": ["CMD", "touch", "/tmp/health"], "Interval": 100_000_000},
    }
    made = daemon.commit(base, conf=conf)["Id"]
    daemon.remove_container(base)
    yield made
    daemon.remove_image(made, force=True, noprune=True)  # its parent, the trainer image, has no tag to keep it


@pytest.mark.asyncio
async def test_what_an_image_declares_is_overridden(runner: Runner, odd_image: str, daemon: Any) -> None:
    code = """
import json, os, time
def fill(folder):
    try:
        with open(folder + "/big", "wb", buffering=0) as file:
            for _ in range(64): file.write(bytes(1 << 20))
    except OSError as error:
        return error.errno
time.sleep(0.5)
mounts = {line.split()[1]: line.split()[2] for line in open("/proc/self/mounts")}
json.dump({"env": sorted(os.environ), "path": os.environ["PATH"], "uid": os.getuid(), "cwd": os.getcwd(),
           "tmp": os.listdir("/tmp"), "kinds": [mounts[p] for p in ("/data", "/var/lib/db", "/tmp")],
           "fill": [fill("/data"), fill("/var/lib/db")]}, open("/job/out/metrics.json", "w"))
"""
    before = {found["Name"] for found in daemon.volumes()["Volumes"] or []}
    result = await runner.run(code, image=odd_image, disk_mib=32)
    assert result.status is Status.OK, result
    seen = json.loads(result.files["metrics.json"])
    assert not {"LEAK", "PYTHONPATH", "LD_PRELOAD"} & set(seen["env"]) and seen["path"] == "/usr/local/bin:/opt/bin"
    assert (seen["uid"], seen["cwd"], seen["tmp"]) == (JOB_UID, "/tmp", [])
    assert seen["kinds"] == ["tmpfs"] * 3 and all(code in (27, 28) for code in seen["fill"])
    after = {found["Name"] for found in daemon.volumes()["Volumes"] or [] if not found["Name"].startswith("crdtchain-")}
    assert after <= before
