"""Runs inside the sandbox, as a job's program: tries what must not work, and writes what it saw to metrics.json."""

import ctypes
import errno
import json
import os
import platform
import resource
import socket
import subprocess
import sys

SYSCALLS = {
    "x86_64": {
        "ptrace": 101, "mount": 165, "pivot_root": 155, "unshare": 272, "setns": 308, "keyctl": 250, "bpf": 321,
        "userfaultfd": 323, "perf_event_open": 298, "io_uring_setup": 425, "memfd_create": 319, "execveat": 322,
        "open_by_handle_at": 304, "process_vm_readv": 310, "fsopen": 430, "splice": 275, "clone3": 435,
    },
    "aarch64": {
        "ptrace": 117, "mount": 40, "pivot_root": 41, "unshare": 97, "setns": 268, "keyctl": 219, "bpf": 280,
        "userfaultfd": 282, "perf_event_open": 241, "io_uring_setup": 425, "memfd_create": 279, "execveat": 281,
        "open_by_handle_at": 265, "process_vm_readv": 270, "fsopen": 430, "splice": 76, "clone3": 435,
    },
}  # fmt: skip


def attempt(action):
    """Return "done", or the name of the error."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "done"


def call(number):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")


def write(path, data="x"):
    with open(path, "w") as file:
        file.write(data)


def run_from_tmp():
    write("/tmp/tool", "#!/usr/local/bin/python\nprint(1)\n")
    os.chmod("/tmp/tool", 0o755)
    subprocess.run(["/tmp/tool"], check=True)


def use_socket(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as end:
        end.settimeout(2)
        if address is not None:
            end.connect(address)


def count_files(folder):
    made = 0
    os.mkdir(folder)
    try:
        for made in range(100_000):
            write(f"{folder}/{made}", "")
    except OSError as error:
        reason = errno.errorcode[error.errno]
    for number in range(made):
        os.unlink(f"{folder}/{number}")
    os.path.exists(f"{folder}/{made}") and os.unlink(f"{folder}/{made}")
    os.rmdir(folder)
    return [made, reason]


def count_bytes(path):
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < 1 << 30:
                written += file.write(bytes(1 << 16))
    except OSError as error:
        reason = errno.errorcode[error.errno]
    os.unlink(path)
    return [written, reason]


def count_processes():
    """Fork sleeping children until no more come."""
    children, reason = [], "none"
    try:
        while len(children) < 2000:
            child = os.fork()
            if child == 0:
                import time

                time.sleep(30)
                os._exit(0)
            children.append(child)
    except OSError as error:
        reason = errno.errorcode[error.errno]
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return [len(children), reason]


def mounts():
    with open("/proc/self/mounts") as file:
        return {line.split()[1]: line.split()[2:4] for line in file}


def main():
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
    seen = {
        "argv": sys.argv,
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
        "hostname": socket.gethostname(),
        "status": {name: status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "NoNewPrivs", "Seccomp")},
        "init": open("/proc/1/comm").read().strip(),
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "resolver": open("/etc/resolv.conf").read(),
        "oom_score_adj": open("/proc/self/oom_score_adj").read().strip(),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in
                   ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_MSGQUEUE") if hasattr(resource, name)},
        "mounts": mounts(),
        "shm_bytes": os.statvfs("/dev/shm").f_frsize * os.statvfs("/dev/shm").f_blocks,
        "read_only": {place: bool(os.statvfs(place).f_flag & os.ST_RDONLY) for place in ("/", "/usr", "/job/in")},
        "syscalls": {name: attempt(lambda n=number: call(n)) for name, number in SYSCALLS[platform.machine()].items()},
        "write": {place: attempt(lambda p=place: write(p)) for place in
                  ("/x", "/usr/x", "/etc/x", "/job/x", "/job/in/x", "/job/in/code/main.py", "/etc/hosts", "/dev/x",
                   "/proc/sys/kernel/core_pattern", "/sys/fs/cgroup/memory/memory.limit_in_bytes")},
        "chown_in": attempt(lambda: os.chmod("/job/in/code/main.py", 0o777)),
        "exec_tmp": attempt(run_from_tmp),
        "setuid": attempt(lambda: os.setuid(0)),
        "mknod": attempt(lambda: os.mknod("/tmp/disk", 0o060666, os.makedev(254, 0))),
        "internet": attempt(lambda: use_socket(socket.AF_INET, ("192.0.2.1", 80))),
        "internet6": attempt(lambda: use_socket(socket.AF_INET6, ("2001:db8::1", 80))),
        "sockets": {str(family): attempt(lambda f=family: use_socket(f, None)) for family in (1, 2, 16, 17, 38, 40)},
        "tmp_bytes": count_bytes("/tmp/big"),
        "tmp_files": count_files("/tmp/many"),
        "forks": count_processes(),
        "devices": sorted(os.listdir("/dev")),
        "kernel_log": attempt(lambda: open("/dev/kmsg").close()),
    }  # fmt: skip
    write("/job/out/metrics.json", json.dumps(seen))


main()
