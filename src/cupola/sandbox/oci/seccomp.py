"""The system calls a sandbox may make: an allow list, no wider than Docker's default.

Everything else fails with EPERM, and `clone3` with ENOSYS so that the C library falls back to `clone`, whose
flags can be checked: new namespaces are refused. See `seccomp(2)` and the OCI runtime specification, `linux.seccomp`.
"""

from __future__ import annotations

from typing import Any

EPERM = 1
ENOSYS = 38
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""

_FILES = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch lchown lgetxattr link linkat listxattr llistxattr lremovexattr lseek lsetxattr
lstat mkdir mkdirat mknod mknodat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir sendfile setxattr splice stat statfs
statx symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes
write writev name_to_handle_at
"""
_MEMORY = """
brk madvise membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall munmap
pkey_alloc pkey_free pkey_mprotect remap_file_pages process_mrelease
"""
_PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork getegid geteuid getgid getgroups getpgid getpgrp getpid
getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kill pause
pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq seccomp set_robust_list get_robust_list
set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid setrlimit
setsid setuid tgkill tkill vfork wait4 waitid landlock_create_ruleset landlock_add_rule landlock_restrict_self
getcpu sysinfo uname times
"""
_SIGNALS = """
alarm rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_tgsigqueueinfo sigaltstack signalfd signalfd4
"""
_TIME = """
clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create timer_delete
timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
"""
_SCHEDULING = """
futex futex_waitv sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
"""
_COMMUNICATION = """
accept accept4 bind connect epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 getpeername getsockname getsockopt getrandom listen mq_getsetattr mq_notify mq_open
mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd pipe pipe2 poll ppoll pselect6 recvfrom recvmmsg
recvmsg select semctl semget semop semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown
socketpair
"""

ALLOWED: tuple[str, ...] = tuple(
    sorted(
        {*_FILES.split(), *_MEMORY.split(), *_PROCESSES.split(), *_SIGNALS.split(), *_TIME.split()}
        | {*_SCHEDULING.split(), *_COMMUNICATION.split()}
    )
)

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_AUDIT = 0, 4, 9

# Other families, and other protocols of netlink, are code of the kernel that is seldom used and may be loaded by asking for
# it; one tells every event of the host's devices. Programs that add users do not go on without NETLINK_AUDIT.
_SOCKET_RULES = (
    *([(0, family)] for family in (AF_UNIX, AF_INET, AF_INET6)),
    *([(0, AF_NETLINK), (2, protocol)] for protocol in (NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_AUDIT)),
)
"""Indices of arguments and the values they must have; all of one of them have to fit."""

# A request to ioctl(2) has its direction in the bits 30 and 31 and a letter in the bits 8 to 15; the kernel drops what is
# above bit 31. Requests that only write are not allowed for the letters of FS_IOC_SETFLAGS (`f`) and FS_IOC_FSSETXATTR
# (`X`), by which the owner of a file takes it out of the quota of its project. A filter can only say what the bits are,
# not what they are not: `f` is 01100110 and `X` is 01011000, so what has bit 7, not bit 6, or bit 0 is neither.
_DIRECTION = 0xC0000000
_ONLY_WRITES = 0x40000000
_IOCTL_RULES = (
    (_DIRECTION, 0x00000000),
    (_DIRECTION, 0x80000000),
    (_DIRECTION, 0xC0000000),
    (_DIRECTION | 0x8000, _ONLY_WRITES | 0x8000),
    (_DIRECTION | 0x4000, _ONLY_WRITES),
    (_DIRECTION | 0x0100, _ONLY_WRITES | 0x0100),
    (_DIRECTION | 0xFF00, _ONLY_WRITES | ord("T") << 8),
)
"""Masks of a request's bits and the values they must have; one of them has to fit."""


def profile() -> dict[str, Any]:
    """The `linux.seccomp` object of an OCI runtime configuration."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": list(ALLOWED), "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
            },
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
            *(
                {
                    "names": ["socket"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": index, "value": value, "op": "SCMP_CMP_EQ"} for index, value in rule],
                }
                for rule in _SOCKET_RULES
            ),
            *(
                {
                    "names": ["ioctl"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 1, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}],
                }
                for mask, value in _IOCTL_RULES
            ),
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
