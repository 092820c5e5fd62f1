"""Runs one completion and its checks: a program of its own, and all that it has is the library.

``code_child.py VERDICT_FD``, with a marshalled `(code, checks, limits)` on stdin. What it says, on
that descriptor: ``s`` once it has locked itself in, ``l`` once the completion ran to its end. Then
it reads a token from stdin, and for each check that passes it writes a line: token and number.
The token is in no memory of this process for as long as the completion alone runs.

What a locked process can do: compute, read files, make threads and pipes. Every other call to the
kernel fails with EPERM: there is no network, no process to start or to signal, and no file that
could be written, moved or removed. The list names what is allowed, so what it forgets is refused.
"""

from __future__ import annotations

import builtins
import marshal
import os
import resource
import sys

TYPE_CHECKING = False  # typing itself takes longer to import than everything above
if TYPE_CHECKING:
    from typing import Any

_TOKEN_BYTES = 32
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, audit number

# By name: the number on x86_64, and on aarch64 (-1: it has none).
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, -1),
    "fstat": (5, 80),
    "lstat": (6, -1),
    "poll": (7, -1),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, -1),
    "pipe": (22, -1),
    "select": (23, -1),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, -1),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "alarm": (37, -1),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "recvfrom": (45, 207),
    "shutdown": (48, 210),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, -1),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "getpgrp": (111, -1),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "sigaltstack": (131, 132),
    "arch_prctl": (158, -1),
    "gettid": (186, 178),
    "time": (201, -1),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, -1),
    "epoll_ctl": (233, 21),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
}
_WRITES = 0o3 | 0o100 | 0o1000  # any access mode but reading, O_CREAT, O_TRUNC
_THREAD = 0x10000  # CLONE_THREAD
_ALL = 0xFFFFFFFF
# Allowed where an argument, masked, is one of some values: numbers, argument, mask, values.
_CONDITIONAL = (
    ((2, -1), 1, _WRITES, (0,)),  # open
    ((257, 56), 2, _WRITES, (0,)),  # openat
    ((56, 220), 0, _THREAD, (_THREAD,)),  # clone
    ((302, 261), 2, _ALL, (0,)),  # prlimit64: to ask, not to set
    ((53, 199), 0, _ALL, (1,)),  # socketpair: AF_UNIX, which leads nowhere else
    ((44, 206), 4, _ALL, (0,)),  # sendto: without an address
    ((72, 25), 1, _ALL, (0, 1, 2, 3, 4, 1030)),  # fcntl: descriptors and their flags, no signals
    ((16, 29), 1, _ALL, (0x5401, 0x5413, 0x541B, 0x5421, 0x5451)),  # ioctl: is it a terminal, ...
)
_CLONE3 = 435  # its flags are out of a filter's sight; told that it is missing, libc takes clone
_EPERM, _ENOSYS = 1, 38
_POINTERS = frozenset({(302, 261), (44, 206)})  # their upper halves must be zero, too

_LOAD, _JUMP_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_FILTER = 1, 22, 38, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_READS = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder
_LANDLOCK_FILE_READS = 1 << 0 | 1 << 2


def main() -> None:
    """Run what stdin says; the verdict is what is written, never the exit status."""
    verdict = int(sys.argv[1])
    size = int.from_bytes(_exactly(0, 8), "little")
    code, checks, limits = marshal.loads(_exactly(0, size))  # noqa: S302  # from our own engine
    compiled = [compile(check, "<tests>", "exec", dont_inherit=True) for check in checks]
    known = dict(vars(builtins))
    # From here on the completion's stdin is empty, and the token comes where it does not look.
    channel = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if "random" in code or any("random" in check for check in checks):
        import random

        random.seed(0)
    lock_in(*limits)
    os.write(verdict, b"s")

    solution = type(sys)("solution")
    sys.modules["solution"] = solution
    exec(compile(code, "<completion>", "exec", dont_inherit=True), vars(solution))  # noqa: S102

    sys.settrace(None)
    sys.setprofile(None)
    vars(builtins).update(known)
    vars(solution).update(__builtins__=builtins, __same__=_same)
    os.write(verdict, b"l")
    token = _exactly(channel, _TOKEN_BYTES)
    for number, check in enumerate(compiled):
        if _passes(check, vars(solution)):
            os.write(verdict, b"%s %d\n" % (token, number))


def _passes(check: Any, names: dict[str, Any]) -> bool:
    try:
        exec(check, names)  # noqa: S102
    except BaseException:  # noqa: BLE001  # whatever it is, it is what a failed check does
        return False
    return True


def _same(left: Any, right: Any) -> Any:
    """``left == right``, but for what claims to be equal to everything."""
    equal = left == right
    if equal:
        stranger = object()
        try:
            is_tricked = bool(left == stranger) or bool(right == stranger)
        except Exception:  # noqa: BLE001  # it minds strangers, so it does not equal all
            is_tricked = False
        if is_tricked:
            return False
    return equal


def lock_in(cpu_seconds: int, memory_bytes: int, sandbox: bool) -> None:
    """Limits for good, and the sandbox. Raises OSError where it cannot be had."""
    limits = {
        "RLIMIT_CPU": cpu_seconds,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_AS": memory_bytes,
    }
    if not sandbox:
        limits |= {"RLIMIT_NPROC": 0, "RLIMIT_FSIZE": 1 << 20}
    for name, limit in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (OSError, ValueError, AttributeError):  # a Mac has no RLIMIT_AS that can be set
            if sandbox:
                raise
    if sandbox:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
        _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), ctypes)
        _hide_files(libc, ctypes)
        _filter_calls(libc, ctypes)


def _hide_files(libc: Any, ctypes: Any) -> None:
    """Leave only Python's own files readable, where the kernel has Landlock."""
    handled = ctypes.c_uint64(_LANDLOCK_READS)
    rules = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    if rules < 0:
        return
    library = os.path.dirname(os.__file__)  # noqa: PTH120  # pathlib takes long to import
    folders = (os.path.dirname(library), "/lib", "/lib64", "/usr/lib", "/usr/lib64")  # noqa: PTH120
    for path in (*folders, "/usr/share/zoneinfo", os.getcwd()):  # noqa: PTH109
        _let_read(libc, ctypes, rules, path, _LANDLOCK_READS)
    for path in ("/dev/null", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime"):
        _let_read(libc, ctypes, rules, path, _LANDLOCK_FILE_READS)
    _checked(libc.syscall(_LANDLOCK_RESTRICT, rules, 0), ctypes)
    os.close(rules)


def _let_read(libc: Any, ctypes: Any, rules: int, path: str, access: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine
    beneath = access.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder)
    _checked(libc.syscall(_LANDLOCK_ADD, rules, 1, beneath, 0), ctypes)
    os.close(place)


def _filter_calls(libc: Any, ctypes: Any) -> None:
    program = filter_program(os.uname().machine)
    instructions = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):  # type: ignore[misc]
        _fields_ = (("length", ctypes.c_ushort), ("first", ctypes.c_void_p))

    whole = Program(len(program) // 8, ctypes.addressof(instructions))
    _checked(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(whole), 0, 0), ctypes)


def filter_program(machine: str) -> bytes:
    """The filter as the kernel reads it: 8 bytes an instruction. Raises OSError elsewhere."""
    if machine not in _ARCHITECTURES or sys.platform != "linux":
        raise OSError(_ENOSYS, "no sandbox for this machine")
    column, audit = _ARCHITECTURES[machine]
    code = [
        _instruction(_LOAD, _ARCHITECTURE_OFFSET),
        _instruction(_JUMP_EQUAL, audit, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER_OFFSET),
    ]
    for numbers, argument, mask, values in _CONDITIONAL:
        if numbers[column] < 0:
            continue
        offset = _ARGUMENTS_OFFSET + 8 * argument  # its lower half: both machines are little-endian
        test = [_instruction(_LOAD, offset), _instruction(_AND, mask)]
        if numbers in _POINTERS:
            upper = [_instruction(_LOAD, offset + 4), _instruction(_JUMP_EQUAL, 0, 1, 0)]
            test = [*upper, _instruction(_RETURN, _ERROR | _EPERM), *test]
        for value in values:
            test += [_instruction(_JUMP_EQUAL, value, 0, 1), _instruction(_RETURN, _ALLOW)]
        test.append(_instruction(_RETURN, _ERROR | _EPERM))
        code += [_instruction(_JUMP_EQUAL, numbers[column], 0, len(test)), *test]
    code += [
        _instruction(_JUMP_EQUAL, _CLONE3, 0, 1),
        _instruction(_RETURN, _ERROR | _ENOSYS),
    ]
    for numbers in _ALLOWED.values():
        if numbers[column] >= 0:
            code += [
                _instruction(_JUMP_EQUAL, numbers[column], 0, 1),
                _instruction(_RETURN, _ALLOW),
            ]
    code.append(_instruction(_RETURN, _ERROR | _EPERM))
    return b"".join(code)


def _instruction(operation: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    jumps = bytes((when_true, when_false))
    return operation.to_bytes(2, "little") + jumps + value.to_bytes(4, "little")


def _checked(result: int, ctypes: Any) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "the kernel refuses the sandbox")


def _exactly(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = os.read(descriptor, count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


if __name__ == "__main__":
    main()
