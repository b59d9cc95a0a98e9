"""Attempts to reach parts of the kernel that a sandbox has no business with."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from functools import partial
from pathlib import Path

from tests.attacks.attempts.registry import Impossible, Wall, add, attempt, call, needs, passes, refuse, syscall

# What no capability is needed for: the filter alone refuses it.


def _perf() -> None:
    attributes = ctypes.create_string_buffer(128)
    # A count of its own processor clock, of user space only: the kernel's usual setting lets anybody have it.
    struct.pack_into("IIQ", attributes, 0, 1, 128, 0)
    struct.pack_into("Q", attributes, 40, 1 << 5 | 1 << 6)
    syscall(298, attributes, 0, -1, -1, 0)


def _userfaultfd() -> None:
    passes(lambda: syscall(323, 1))


def _io_uring() -> None:
    passes(lambda: syscall(425, 8, ctypes.create_string_buffer(120)))


def _process_vm() -> None:
    text = ctypes.create_string_buffer(b"x", 8)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(text), 1)
    syscall(310, os.getpid(), vector, 1, vector, 1, 0)


def _process_vm_write() -> None:
    text = ctypes.create_string_buffer(b"x", 8)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(text), 1)
    syscall(311, os.getpid(), vector, 1, vector, 1, 0)


def _pidfd_getfd() -> None:
    syscall(438, os.pidfd_open(os.getpid()), 1, 0)


def _vmsplice() -> None:
    reading, writing = os.pipe()
    text = ctypes.create_string_buffer(b"x", 8)
    syscall(278, writing, (ctypes.c_uint64 * 2)(ctypes.addressof(text), 1), 1, 0)
    os.close(reading)


def _memory_policy() -> None:
    passes(lambda: syscall(238, 0, 0, 0))


def _aio() -> None:
    context = ctypes.c_ulong(0)
    passes(lambda: syscall(206, 1000, ctypes.byref(context)))


for _name, _tries, _run in (
    ("perf_event_open", "watch itself by performance counters", _perf),
    ("userfaultfd", "handle page faults itself, which makes faults of the kernel easier to use", _userfaultfd),
    ("io_uring", "set up io_uring, whose requests no filter sees", _io_uring),
    ("keyctl", "join the kernel's keyring", lambda: passes(lambda: syscall(250, 1, 0))),
    ("add_key", "put a key into a keyring that others share",
     lambda: passes(lambda: syscall(248, b"user", b"attempt", b"x", 1, -2))),
    ("request_key", "ask for a key, for which the kernel starts a program of the host",
     lambda: passes(lambda: syscall(249, b"user", b"attempt", None, 0), errno.ENOKEY)),
    ("process_vm_readv", "read memory by process_vm_readv", _process_vm),
    ("process_vm_writev", "write memory by process_vm_writev", _process_vm_write),
    ("pidfd_getfd", "take a descriptor out of a process", _pidfd_getfd),
    ("kcmp", "compare kernel objects, which tells their addresses' order",
     lambda: passes(lambda: syscall(312, os.getpid(), os.getpid(), 0, 0, 0))),
    ("vmsplice", "map its memory into a pipe", _vmsplice),
    ("modify_ldt", "change the processor's descriptor table",
     lambda: passes(lambda: syscall(154, 0, ctypes.create_string_buffer(16), 16))),
    ("set_mempolicy", "set its memory policy", _memory_policy),
    ("move_pages", "move pages", lambda: passes(lambda: syscall(279, 0, 0, None, None, None, 0))),
    ("personality", "switch off the randomness of addresses", lambda: syscall(135, 0x0040000)),
    ("personality_32", "pretend to be a 32-bit system", lambda: syscall(135, 0x0008)),
    ("ustat", "ask for file systems by their numbers",
     lambda: passes(lambda: syscall(136, 0, ctypes.create_string_buffer(64)), errno.EINVAL)),
    ("sysfs_call", "ask for the kinds of file systems", lambda: passes(lambda: syscall(139, 3))),
    ("quotactl", "ask for quotas",
     lambda: passes(lambda: syscall(179, 0x800007 << 8, b"/there-is-no-disk", 0, None), errno.ENOENT)),
    ("listmount", "list all mounts",
     lambda: passes(lambda: syscall(458, None, None, 0, 0), errno.EFAULT, errno.EINVAL)),
    ("adjtimex", "ask how the clock is steered",
     lambda: passes(lambda: syscall(159, ctypes.create_string_buffer(256)))),
    ("fanotify", "watch a whole file system",
     lambda: passes(lambda: syscall(300, 0x200, 0))),
    ("memfd_secret", "get memory that the kernel cannot see", lambda: passes(lambda: syscall(447, 0))),
    ("aio", "reserve requests of the kernel's asynchronous input and output, of which all share one limit", _aio),
):  # fmt: skip
    add(_name, _tries, _run, Wall.SECCOMP)


# What needs a capability too.


def _bpf() -> None:
    # A map of one element.
    syscall(321, 0, (ctypes.c_uint32 * 18)(2, 4, 4, 1), 72)


def _module() -> None:
    passes(lambda: syscall(175, b"nonsense", 8, b""), errno.ENOEXEC, errno.EINVAL, errno.EBADMSG, errno.EPROTO)


def _module_file() -> None:
    opened = os.open("/etc/passwd", os.O_RDONLY)
    passes(lambda: syscall(313, opened, b"", 0), errno.ENOEXEC, errno.EINVAL, errno.EBADMSG, errno.EPROTO)


def _file_time() -> None:
    syscall(164, None, None)


for _name, _tries, _run in (
    ("bpf_map", "make a map for programs in the kernel", _bpf),
    ("init_module", "load a kernel module", _module),
    ("finit_module", "load a kernel module from a file", _module_file),
    ("delete_module", "remove a kernel module",
     lambda: passes(lambda: syscall(176, b"there_is_no_such_module", 0), errno.ENOENT, errno.EWOULDBLOCK)),
    ("kexec_load", "load another kernel",
     lambda: passes(lambda: syscall(246, 0, 1 << 20, None, 0), errno.EINVAL)),
    ("kexec_file_load", "load another kernel from a file",
     lambda: passes(lambda: syscall(320, -1, -1, 0, None, 1 << 30), errno.EINVAL, errno.EBADF)),
    ("reboot", "restart the machine", lambda: passes(lambda: syscall(169, 1, 2, 3, None), errno.EINVAL)),
    ("swapon", "add swap space",
     lambda: passes(lambda: syscall(167, b"/there-is-no-swap", 0), errno.ENOENT, errno.EINVAL)),
    ("swapoff", "remove swap space",
     lambda: passes(lambda: syscall(168, b"/there-is-no-swap"), errno.ENOENT, errno.EINVAL)),
    ("acct", "have the kernel write a file for each process that ends",
     lambda: passes(lambda: syscall(163, b"/there-is-no-file"), errno.ENOENT)),
    ("settimeofday", "set the machine's clock", _file_time),
    ("sethostname", "set the host name", lambda: call("sethostname", *_host_name())),
    ("setdomainname", "set the domain name", lambda: call("setdomainname", b"(none)", 6)),
    ("iopl", "talk to devices by ports", lambda: passes(lambda: syscall(172, 3))),
    ("ioperm", "talk to some devices by ports", lambda: passes(lambda: syscall(173, 0x80, 1, 1))),
    ("syslog", "steer what the kernel prints",
     lambda: passes(lambda: syscall(103, 8, None, 0), errno.EINVAL)),
    ("vhangup", "hang up the terminal", lambda: syscall(153)),
):  # fmt: skip
    add(_name, _tries, _run, Wall.SECCOMP, Wall.CAPABILITIES)


def _host_name() -> tuple[bytes, int]:
    name = os.uname().nodename.encode()
    return name, len(name)


# The same calls by other doors.

_INT_80 = bytes.fromhex(
    "53"  # push rbx
    "89f8"  # mov eax, edi
    "89f3"  # mov ebx, esi
    "89d1"  # mov ecx, edx
    "31d2"  # xor edx, edx
    "31f6"  # xor esi, esi
    "31ff"  # xor edi, edi
    "cd80"  # int 0x80
    "5b"  # pop rbx
    "c3"  # ret
)


def call_32(number: int, first: int = 0, second: int = 0) -> int:
    """A system call as 32-bit programs make it, with numbers of their own."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_INT_80)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    result: int = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int)(address)(
        number, first, second
    )
    if -4096 < result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


NEW_USER = 0x10000000

for _name, _tries, _run in (
    ("unshare_user_32", "make a user namespace by the 32-bit call", lambda: passes(lambda: call_32(310, NEW_USER))),
    ("keyctl_32", "join the keyring by the 32-bit call", lambda: passes(lambda: call_32(288, 1, 0))),
    ("personality_32_bit", "switch off the randomness of addresses by the 32-bit call",
     lambda: passes(lambda: call_32(136, 0x0040000))),
    ("io_uring_32", "set up io_uring by the 32-bit call",
     lambda: passes(lambda: call_32(425, 8, 0), errno.EFAULT)),
    ("perf_event_open_32", "use performance counters by the 32-bit call",
     lambda: passes(lambda: call_32(336, 0, 0), errno.EFAULT, errno.EINVAL)),
    ("userfaultfd_32", "handle page faults by the 32-bit call", lambda: passes(lambda: call_32(374, 1))),
):  # fmt: skip
    add(_name, _tries, _run, Wall.SECCOMP)
for _name, _tries, _run in (
    ("reboot_32", "restart the machine by the 32-bit call",
     lambda: passes(lambda: call_32(88, 1, 2), errno.EINVAL)),
    ("settimeofday_32", "set the machine's clock by the 32-bit call", lambda: call_32(79)),
    ("unshare_mounts_32", "make a mount namespace by the 32-bit call", lambda: passes(lambda: call_32(310, 0x20000))),
):  # fmt: skip
    add(_name, _tries, _run, Wall.SECCOMP, Wall.CAPABILITIES)


@attempt(Wall.SECCOMP)
def keyctl_x32() -> None:
    """Join the keyring by the call of the x32 programs."""
    passes(lambda: syscall(0x40000000 | 250, 1, 0))


# Families of sockets whose code is seldom used and seldom looked at; to ask for one can load a module of the kernel.


def _family(family: int, kind: int, protocol: int) -> None:
    try:
        socket.socket(family, kind, protocol).close()
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            raise Impossible("this kernel does not have the family, or cannot load it") from error
        raise


for _name, _arguments in (
    ("vsock", (40, 1, 0)), ("alg", (38, 5, 0)), ("tipc", (30, 4, 0)), ("rds", (21, 5, 0)), ("can", (29, 3, 1)),
    ("netlink_netfilter", (16, 3, 12)), ("netlink_xfrm", (16, 3, 6)), ("netlink_generic", (16, 3, 16)),
    ("netlink_crypto", (16, 3, 21)),
):  # fmt: skip
    add(f"socket_{_name}", f"open a socket of the kind {_name}", partial(_family, *_arguments), Wall.SECCOMP)


@attempt(Wall.SECCOMP)
def hear_device_events() -> None:
    """Hear what happens to the host's devices."""
    with socket.socket(16, socket.SOCK_DGRAM, 15) as events:
        events.bind((0, 1))


# The walls themselves.


@attempt(Wall.CAPABILITIES)
def take_all_capabilities() -> None:
    """Set all capabilities as effective."""
    everything = (ctypes.c_uint32 * 6)(*([0xFFFFFFFF] * 6))
    have = (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall(125, header, have)
    # Of what the test itself has: where it is a container, that is not all.
    everything[0], everything[3] = have[1] | 1 << 21, have[4]
    everything[1], everything[4] = have[1] | 1 << 21, have[4]
    everything[2], everything[5] = have[2], have[5]
    syscall(126, header, everything)


@attempt(Wall.CAPABILITIES)
def keep_a_capability_for_others() -> None:
    """Hand CAP_SYS_ADMIN to every program that it starts."""
    inheritable = (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall(125, header, inheritable)
    inheritable[2] |= 1 << 21
    syscall(126, header, inheritable)
    call("prctl", 47, 2, 21, 0, 0)


@attempt(Wall.NO_NEW_PRIVILEGES)
def forget_no_new_privileges() -> None:
    """Have no_new_privileges taken back."""
    if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        call("prctl", 38, 0, 0, 0, 0)


@attempt(Wall.SECCOMP)
def switch_the_filter_off() -> None:
    """Have the filter of system calls taken away."""
    if "Seccomp:\t0" not in Path("/proc/self/status").read_text():
        call("prctl", 22, 0, 0, 0, 0)
        refuse("it is still there")


@attempt(Wall.CAPABILITIES)
def read_kernel_addresses() -> None:
    """Read where the kernel's functions are."""
    with open(needs("/proc/kallsyms")) as file:
        address = file.readline().split()[0]
    if int(address, 16) == 0:
        refuse("all are shown as 0")
