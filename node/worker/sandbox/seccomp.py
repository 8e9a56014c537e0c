"""The system calls that a job's program may make, as a seccomp profile for the docker daemon.

It is an allow-list: whatever is not named fails with EPERM, and x86's 32-bit entry points are not there
at all. It was drawn up from what CPython, numpy, scikit-learn and their thread pools call. Left out on
purpose are the calls that most kernel exploits of recent years began with: io_uring, bpf, userfaultfd,
keyctl, perf_event_open, the mount calls, new namespaces, ptrace, splice, and memfd_create with execveat
(programs that never touch a file system that is mounted noexec).
"""

from __future__ import annotations

import json

EPERM = 1
ENOSYS = 38
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_CLONE_NEW_ANY = 0x7E020000  # every CLONE_NEW* flag: no new namespace of any kind
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)

_FILES = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr
lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr stat statfs statx
symlink symlinkat sync sync_file_range syncfs truncate umask unlink unlinkat utime utimensat utimes write writev
"""
_MEMORY = """
brk get_mempolicy madvise mbind membarrier mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall
munmap pkey_alloc pkey_free pkey_mprotect process_mrelease set_mempolicy
"""
_PROCESSES = """
arch_prctl capget capset execve exit exit_group fork get_robust_list getcpu getegid geteuid getgid getgroups getpgid
getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get
ioprio_set kill pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield set_robust_list set_thread_area
set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid setrlimit
setsid setuid sysinfo tgkill time times tkill uname vfork wait4 waitid
"""
_SIGNALS_AND_TIME = """
alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep rt_sigaction rt_sigpending
rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo setitimer sigaltstack
timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
"""
_WAITING_AND_PIPES = """
accept accept4 bind connect epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
futex futex_waitv getpeername getsockname getsockopt listen pipe pipe2 poll ppoll pselect6 recvfrom recvmmsg recvmsg
select semctl semget semop semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown signalfd
signalfd4 socketpair
"""


def _allow(names: list[str]) -> dict[str, object]:
    return {"names": names, "action": "SCMP_ACT_ALLOW"}


def _allow_when(name: str, index: int, value: int, op: str = "SCMP_CMP_EQ", masked: int = 0) -> dict[str, object]:
    return {
        "names": [name],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": index, "value": value, "valueTwo": masked, "op": op}],
    }


def build_profile() -> dict[str, object]:
    """Return the profile as docker's JSON has it."""
    always = f"{_FILES} {_MEMORY} {_PROCESSES} {_SIGNALS_AND_TIME} {_WAITING_AND_PIPES}"
    rules = [_allow(sorted(set(always.split())))]
    rules += [_allow_when("socket", 0, family) for family in (_AF_UNIX, _AF_INET, _AF_INET6)]
    rules += [_allow_when("personality", 0, value) for value in _PERSONALITIES]
    rules.append(_allow_when("clone", 0, _CLONE_NEW_ANY, "SCMP_CMP_MASKED_EQ", 0))
    # A filter can't look into clone3's struct; with ENOSYS the C library falls back to clone.
    rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    }


def profile_json() -> str:
    """Return the profile as the text that docker's `seccomp=` option takes."""
    return json.dumps(build_profile(), sort_keys=True, separators=(",", ":"))
