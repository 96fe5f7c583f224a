"""System call filters: the default profile, and the profiles a node's administrator has put on its disk.

The default allows what programs commonly need and no container should be refused, and what belongs to a capability
only to a container that has it. Every other call the kernel has today gets EPERM; calls unknown to this list get
ENOSYS, so that a C library newer than the list falls back to what it used before.
"""

import functools
import json
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import SecurityProfile, SecurityProfileProfileType
from criw_supervisor.oci import JsonObject

_PROFILE_LIMIT: Final = 4 * 1024 * 1024  # bytes
_EPERM: Final = 1
_ENOSYS: Final = 38
_CLONE_NAMESPACES: Final = 0x7E020000  # every CLONE_NEW… flag
# Kinds of sockets a container may have. Not AF_ALG (38): bugs behind it let a reader of a file change it in memory, and
# containers share the files of layers (CVE-2026-31431). Not AF_VSOCK (40), which reaches the hypervisor, nor dead ones.
_FAMILIES: Final = (*range(12), *range(13, 19), 21, 22, 24, *range(26, 34), 35, 36, 39, *range(41, 46))

_ALLOWED: Final = (
    "_llseek", "_newselect", "accept", "accept4", "access", "adjtimex", "alarm", "bind", "brk", "cachestat",
    "capget", "capset", "chdir", "chmod", "chown", "chown32", "clock_adjtime", "clock_adjtime64",
    "clock_getres", "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep",
    "clock_nanosleep_time64", "close", "close_range", "connect", "copy_file_range", "creat", "dup", "dup2",
    "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
    "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "execve", "execveat", "exit", "exit_group",
    "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fanotify_mark", "fchdir", "fchmod",
    "fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr",
    "flistxattr", "flock", "fork", "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs",
    "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futex", "futex_requeue", "futex_time64", "futex_wait",
    "futex_waitv", "futex_wake", "futimesat", "get_robust_list", "get_thread_area", "getcpu", "getcwd",
    "getdents", "getdents64", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups",
    "getgroups32", "getitimer", "getpeername", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
    "getrandom", "getresgid", "getresgid32", "getresuid", "getresuid32", "getrlimit", "getrusage", "getsid",
    "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "getuid32", "getxattr", "getxattrat",
    "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch", "io_cancel", "io_destroy",
    "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit", "ioctl", "ioprio_get",
    "ioprio_set", "ipc", "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self",
    "lchown", "lchown32", "lgetxattr", "link", "linkat", "listen", "listmount", "listxattr", "listxattrat",
    "llistxattr", "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64", "madvise", "map_shadow_stack",
    "membarrier", "memfd_create",
    "memfd_secret", "mincore", "mkdir", "mkdirat", "mknod", "mknodat", "mlock", "mlock2", "mlockall", "mmap",
    "mmap2", "mprotect", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64",
    "mq_timedsend", "mq_timedsend_time64", "mq_unlink", "mremap", "mseal", "msgctl", "msgget", "msgrcv",
    "msgsnd", "msync", "munlock", "munlockall", "munmap", "name_to_handle_at", "nanosleep", "newfstatat",
    "open", "openat", "openat2", "pause", "pidfd_open", "pidfd_send_signal", "pipe", "pipe2", "pkey_alloc",
    "pkey_free", "pkey_mprotect", "poll", "ppoll", "ppoll_time64", "prctl", "pread64", "preadv", "preadv2",
    "prlimit64", "process_mrelease", "process_vm_readv", "process_vm_writev", "pselect6", "pselect6_time64",
    "ptrace", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readdir", "readlink", "readlinkat",
    "readv", "recv", "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "remap_file_pages", "removexattr",
    "removexattrat", "rename", "renameat", "renameat2", "restart_syscall", "rmdir", "rseq", "rt_sigaction",
    "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
    "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "select", "semctl", "semget", "semop", "semtimedop",
    "semtimedop_time64", "send", "sendfile", "sendfile64", "sendmmsg", "sendmsg", "sendto", "set_robust_list",
    "set_thread_area", "set_tid_address", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid",
    "setgid32", "setgroups", "setgroups32", "setitimer", "setpgid", "setpriority", "setregid", "setregid32",
    "setresgid", "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setrlimit", "setsid",
    "setsockopt", "setuid", "setuid32", "setxattr", "setxattrat", "shmat", "shmctl", "shmdt", "shmget",
    "shutdown", "sigaction", "sigaltstack", "signal", "signalfd", "signalfd4", "sigpending", "sigprocmask",
    "sigreturn", "sigsuspend", "socketcall", "socketpair", "splice", "stat", "stat64", "statfs", "statfs64",
    "statmount", "statx", "symlink", "symlinkat", "sync", "sync_file_range", "syncfs", "sysinfo", "tee",
    "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64",
    "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64",
    "timerfd_settime", "timerfd_settime64", "times", "tkill", "truncate", "truncate64", "ugetrlimit", "umask",
    "uname", "unlink", "unlinkat", "uretprobe", "utime", "utimensat", "utimensat_time64", "utimes", "vfork",
    "vmsplice", "wait4", "waitid", "waitpid", "write", "writev",
)  # fmt: skip

_BY_CAPABILITY: Final = {
    "DAC_READ_SEARCH": ["open_by_handle_at"],
    "SYS_ADMIN": [
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "lookup_dcookie",
        "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr",
        "mount", "mount_setattr", "move_mount", "open_tree", "perf_event_open", "pivot_root", "quotactl",
        "quotactl_fd", "setdomainname", "sethostname", "setns", "syslog", "umount", "umount2", "unshare",
    ],
    "SYS_BOOT": ["reboot"],
    "SYS_CHROOT": ["chroot"],
    "SYS_MODULE": ["delete_module", "finit_module", "init_module"],
    "SYS_NICE": ["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"],
    "SYS_PACCT": ["acct"],
    "SYS_PTRACE": ["kcmp", "pidfd_getfd", "process_madvise"],
    "SYS_RAWIO": ["ioperm", "iopl"],
    "SYS_TIME": ["clock_settime", "clock_settime64", "settimeofday", "stime"],
    "SYS_TTY_CONFIG": ["vhangup"],
    "SYSLOG": ["syslog"],
    "BPF": ["bpf"],
    "PERFMON": ["perf_event_open"],
}  # fmt: skip

_REFUSED: Final = [
    "add_key", "io_uring_enter", "io_uring_register", "io_uring_setup", "kexec_file_load", "kexec_load", "keyctl",
    "migrate_pages", "move_pages", "nfsservctl", "request_key", "swapoff", "swapon", "sysfs", "uselib", "userfaultfd",
    "ustat",
]  # fmt: skip

_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
_X32_GETPID: Final = 0x40000000 + 39
_MACHINE_CALLS: Final = {
    "x86_64": ["arch_prctl", "modify_ldt"],
    "aarch64": ["arm_fadvise64_64", "arm_sync_file_range", "breakpoint", "cacheflush", "set_tls", "sync_file_range2"],
    "ppc64le": ["sync_file_range2", "swapcontext"],
    "s390x": ["s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"],
    "riscv64": ["riscv_flush_icache", "riscv_hwprobe"],
}


def profile(security: SecurityProfile | None, *, held: frozenset[str]) -> JsonObject | None:
    """The `linux.seccomp` object; None for no filter. No profile in the request means no filter, as the CRI has it.

    Raises InvalidArgument for a Localhost profile that cannot be read.
    """
    if security is None or security.profile_type == SecurityProfileProfileType.Unconfined:
        return None
    if security.profile_type == SecurityProfileProfileType.Localhost:
        return _localhost(security.localhost_ref)
    return default(held)


def _localhost(reference: str) -> JsonObject:
    path = Path(reference)
    if not path.is_absolute():
        raise InvalidArgument(f"cannot use seccomp profile {reference}: it must be an absolute path on the node")
    try:
        content = json.loads(_plain(path))
    except (OSError, ValueError, RecursionError) as err:
        raise InvalidArgument(f"cannot use seccomp profile {reference}: {err}") from err
    if not isinstance(content, dict):
        raise InvalidArgument(f"cannot use seccomp profile {reference}: it is not a JSON object")
    return content


def _plain(path: Path) -> bytes:
    """What is in a plain file, as far as a profile is ever long; a FIFO or device is not read."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no plain file")
        return file.read(_PROFILE_LIMIT)


def default(held: frozenset[str]) -> JsonObject:
    """The default profile for a container with these capabilities (names without CAP_)."""
    machine = platform.machine()
    allowed = {*_ALLOWED, *_MACHINE_CALLS.get(machine, ())}
    for capability, calls in _BY_CAPABILITY.items():
        if capability in held:
            allowed.update(calls)
    refused = {*_REFUSED, *(call for calls in _BY_CAPABILITY.values() for call in calls)} - allowed
    rules: list[JsonObject] = [{"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"}]
    rules += [
        {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [_argument(0, value, "SCMP_CMP_EQ")]}
        for value in _PERSONALITIES
    ]
    rules += [
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [_argument(0, family, "SCMP_CMP_EQ")]}
        for family in _FAMILIES
    ]
    if "SYS_ADMIN" not in held:
        # Threads and processes may be made, namespaces not. clone3 hides its flags in memory that no filter sees: it
        # gets ENOSYS, upon which C libraries use clone.
        refused -= {"clone", "clone3"}
        flags = {"index": 1 if machine == "s390x" else 0, "value": _CLONE_NAMESPACES, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [flags | {"valueTwo": 0}]})
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    rules.append({"names": sorted(refused), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _ENOSYS,
        "architectures": _architectures(machine),
        "syscalls": rules,
    }


def _architectures(machine: str) -> list[str]:
    """The kinds of calls the kernel of such a machine takes from its programs; none is the runtime's own kind.

    The third kind is a third of the time it takes to compile the filter, which is done for each container and each
    command in one: 8 ms of theirs. Where the kernel does not serve it, a call of it ends the process.
    """
    if machine == "aarch64":
        return ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    if machine == "x86_64":
        return ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", *(["SCMP_ARCH_X32"] if _serves_x32() else [])]
    return []


@functools.cache
def _serves_x32() -> bool:
    """Whether this kernel has x32 calls. Another process tries one: a filter that we are under may kill it for that."""
    attempt = f"import ctypes; print(ctypes.CDLL(None).syscall({_X32_GETPID}))"
    tried = subprocess.run([sys.executable, "-I", "-S", "-c", attempt], capture_output=True, check=False)
    return tried.returncode == 0 and tried.stdout.strip() != b"-1"


def _argument(index: int, value: int, operator: str) -> JsonObject:
    return {"index": index, "value": value, "op": operator}
