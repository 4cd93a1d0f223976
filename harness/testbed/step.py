"""One system call as data, and the script format: strace's look, and it can be read back.

    root: mkdirat(AT_FDCWD, "d", 0o755)
    root: clone("alice", 0, 1000, 1000, (100,))
    alice: openat(AT_FDCWD, "d/f", O_RDWR|O_CREAT, 0o644)
    alice: write(0, b"x" * 5000)

A line is one call by one task. Every task starts with no descriptor open, so the numbers in a
script are those that Linux's lowest-free rule gives. ``#`` starts a comment.

Besides Linux's calls there are some that are several on Linux, or none:

``clone(name, flags, uid, gid, groups)`` starts a further task. With CLONE_NEWUSER it takes its ids
    first and unshares then, so that the new user namespace belongs to ``uid``.
``exit()`` ends the task, and returns when everything that it held is given back.
``setrlimit_nofile(n)`` sets RLIMIT_NOFILE.
``poll(fd, events)`` is poll(2) of one descriptor, without waiting; the value is ``revents``.
``nsfd(task, "mnt" | "user")`` opens the namespace of a task, as /proc/PID/ns does, for reading.
``mountinfo()``, ``mounts()`` and ``mountstats()`` read the task's own file of that name in /proc.
``statmount_at(path, mask)`` and ``listmount_at(path, flags)`` ask about the mount that ``path`` is
    on, as statx(2) tells it.

Who gets a user namespace (by clone or unshare) finds every id mapped to itself there.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from vfs import abi

# What an argument is, which decides how it is shown (and, on the host, passed).
_AT = "at"
SIGNATURES: Final[dict[str, tuple[str, ...]]] = {
    "access": ("path", "access"),
    "chdir": ("path",),
    "chmod": ("path", "mode"),
    "chown": ("path", "int", "int"),
    "chroot": ("path",),
    "clone": ("str", "clone", "int", "int", "data"),
    "close": ("int",),
    "close_range": ("int", "int", "close_range"),
    "copy_file_range": ("int", "data", "int", "data", "int", "int"),
    "creat": ("path", "mode"),
    "dup": ("int",),
    "dup2": ("int", "int"),
    "dup3": ("int", "int", "open"),
    "exit": (),
    "faccessat2": ("fd", "path", "access", "faccess"),
    "fallocate": ("int", "fallocate", "int", "int"),
    "fchdir": ("int",),
    "fchmod": ("int", "mode"),
    "fchmodat2": ("fd", "path", "mode", _AT),
    "fchown": ("int", "int", "int"),
    "fchownat": ("fd", "path", "int", "int", _AT),
    "fcntl": ("int", "fcntl", "int"),
    "fdatasync": ("int",),
    "fgetxattr": ("int", "path"),
    "flistxattr": ("int",),
    "fremovexattr": ("int", "path"),
    "fsconfig": ("int", "fsconfig", "str", "str", "int"),
    "fsetxattr": ("int", "path", "data", "xattr"),
    "fsmount": ("int", "fsmount", "mount_attr"),
    "fsopen": ("str", "fsopen"),
    "fspick": ("fd", "path", "fspick"),
    "fstat": ("int",),
    "fstatfs": ("int",),
    "fsync": ("int",),
    "ftruncate": ("int", "int"),
    "getcwd": (),
    "getdents64": ("int", "int"),
    "getxattr": ("path", "path"),
    "lchown": ("path", "int", "int"),
    "lgetxattr": ("path", "path"),
    "link": ("path", "path"),
    "linkat": ("fd", "path", "fd", "path", _AT),
    "listmount": ("mount_id", "int", "int", "int", "listmount"),
    "listmount_at": ("path", "listmount"),
    "listxattr": ("path",),
    "llistxattr": ("path",),
    "lremovexattr": ("path", "path"),
    "lseek": ("int", "int", "whence"),
    "lsetxattr": ("path", "path", "data", "xattr"),
    "lstat": ("path",),
    "mkdir": ("path", "mode"),
    "mkdirat": ("fd", "path", "mode"),
    "mknod": ("path", "type", "int"),
    "mknodat": ("fd", "path", "type", "int"),
    "mount": ("path", "path", "str", "mount", "str"),
    "mount_setattr": ("fd", "path", "mount_at", "mount_attrs"),
    "mountinfo": (),
    "mounts": (),
    "mountstats": (),
    "move_mount": ("fd", "path", "fd", "path", "move_mount"),
    "newfstatat": ("fd", "path", _AT),
    "nsfd": ("str", "str"),
    "open": ("path", "open", "mode"),
    "openat": ("fd", "path", "open", "mode"),
    "openat2": ("fd", "path", "open", "mode", "resolve"),
    "open_tree": ("fd", "path", "open_tree"),
    "open_tree_attr": ("fd", "path", "open_tree", "mount_attrs"),
    "pivot_root": ("path", "path"),
    "poll": ("int", "poll"),
    "pread64": ("int", "int", "int"),
    "preadv2": ("int", "data", "int", "rwf"),
    "pwrite64": ("int", "data", "int"),
    "pwritev2": ("int", "data", "int", "rwf"),
    "read": ("int", "int"),
    "readlink": ("path",),
    "readlinkat": ("fd", "path"),
    "removexattr": ("path", "path"),
    "rename": ("path", "path"),
    "renameat2": ("fd", "path", "fd", "path", "rename"),
    "rmdir": ("path",),
    "setns": ("int", "clone"),
    "setrlimit_nofile": ("int",),
    "setxattr": ("path", "path", "data", "xattr"),
    "stat": ("path",),
    "statfs": ("path",),
    "statmount": ("int", "statmount", "int", "int"),
    "statmount_at": ("path", "statmount"),
    "statx": ("fd", "path", _AT, "statx"),
    "symlink": ("path", "path"),
    "symlinkat": ("path", "fd", "path"),
    "sync": (),
    "syncfs": ("int",),
    "truncate": ("path", "int"),
    "umask": ("mode",),
    "umount2": ("path", "umount"),
    "unlink": ("path",),
    "unlinkat": ("fd", "path", "unlink"),
    "unshare": ("clone",),
    "utimensat": ("fd", "path", "data", _AT),
    "write": ("int", "data"),
}

NAMES: Final[dict[str, int]] = {
    **{name: value for name, value in vars(abi).items() if name.isupper() and type(value) is int},
}


def _flags(*patterns: str) -> list[tuple[str, int]]:
    """The named flags that match, those of several bits first, so that O_SYNC beats O_DSYNC."""
    wanted = re.compile("|".join(patterns))
    found = [(name, value) for name, value in NAMES.items() if value and wanted.fullmatch(name)]
    return sorted(found, key=lambda pair: (-pair[1].bit_count(), pair[1]))


_FLAGS: Final[dict[str, list[tuple[str, int]]]] = {
    "access": _flags("[RWX]_OK"),
    "at": _flags("AT_(SYMLINK_.*|NO_AUTOMOUNT|EMPTY_PATH|STATX_.*_SYNC)"),
    "clone": _flags("CLONE_.*"),
    "close_range": _flags("CLOSE_RANGE_.*"),
    "faccess": _flags("AT_(SYMLINK_NOFOLLOW|EACCESS|EMPTY_PATH)"),
    "fallocate": _flags("FALLOC_FL_.*"),
    "fsmount": _flags("FSMOUNT_.*"),
    "fsopen": _flags("FSOPEN_.*"),
    "fspick": _flags("FSPICK_.*"),
    "listmount": _flags("LISTMOUNT_.*"),
    "mount": _flags("MS_(?!POSIXACL|MGC_).*"),
    "mount_at": _flags("AT_(SYMLINK_NOFOLLOW|NO_AUTOMOUNT|EMPTY_PATH|RECURSIVE)"),
    "mount_attr": _flags("MOUNT_ATTR_.*"),
    "move_mount": _flags("MOVE_MOUNT_.*"),
    "open": _flags("O_(?!ACCMODE|RDONLY|TMPFILE_BIT|LARGEFILE).*"),
    "open_tree": _flags("OPEN_TREE_.*", "AT_(SYMLINK_NOFOLLOW|NO_AUTOMOUNT|EMPTY_PATH|RECURSIVE)"),
    "poll": _flags("POLL.*"),
    "rename": _flags("RENAME_.*"),
    "resolve": _flags("RESOLVE_.*"),
    "rwf": _flags("RWF_(?!SUPPORTED).*"),
    "statmount": _flags("STATMOUNT_.*"),
    "statx": _flags("STATX_(?!ATTR|_).*"),
    "umount": _flags("MNT_.*", "UMOUNT_NOFOLLOW"),
    "unlink": _flags("AT_REMOVEDIR"),
    "xattr": _flags("XATTR_(CREATE|REPLACE)"),
}
_CHOICES: Final[dict[str, dict[int, str]]] = {
    "fcntl": {value: name for name, value in NAMES.items() if re.fullmatch("F_(?!OK).*", name)},
    "fd": {abi.AT_FDCWD: "AT_FDCWD"},
    "fsconfig": {value: name for name, value in NAMES.items() if name.startswith("FSCONFIG_")},
    "mount_id": {abi.LSMT_ROOT: "LSMT_ROOT"},
    "whence": {value: name for name, value in NAMES.items() if name.startswith("SEEK_")},
}
# The parts of struct mount_attr.
_MOUNT_ATTRS: Final = ("mount_attr", "mount_attr", "mount", "int")
_TYPES: Final = {value: name for name, value in NAMES.items() if re.fullmatch("S_IF(?!MT).*", name)}


class Step(NamedTuple):
    """One call by one task. Paths, names and data are bytes; structures are tuples."""

    task: str
    call: str
    args: tuple[Any, ...]

    def __repr__(self) -> str:
        return format_step(self)


def make_step(task: str, call: str, *args: Any) -> Step:
    """A step with its paths turned into bytes. Raises: ValueError for a call that is not known."""
    if call not in SIGNATURES:
        raise ValueError(f"no such call: {call}")
    kinds = SIGNATURES[call]
    if len(args) > len(kinds):
        raise ValueError(f"{call} takes {len(kinds)} arguments, not {len(args)}")
    return Step(task, call, tuple(map(_plain, kinds, args)))


def _plain(kind: str, value: Any) -> Any:
    if kind == "path" and value is not None:
        return os.fsencode(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, list):
        return tuple(value)
    return value


def format_step(step: Step) -> str:
    """The step as a script's line."""
    kinds = SIGNATURES.get(step.call, ())
    kinds += ("data",) * (len(step.args) - len(kinds))
    shown = ", ".join(
        _format_argument(kind, value) for kind, value in zip(kinds, step.args, strict=False)
    )
    return f"{step.task}: {step.call}({shown})"


def format_script(steps: Iterable[Step], comment: str = "") -> str:
    """The whole sequence as a script; ``comment`` goes above it."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    return "\n".join([*lines, *map(format_step, steps)]) + "\n"


def _format_argument(kind: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        if kind in _FLAGS:
            return _format_flags(value, _FLAGS[kind])
        if kind in _CHOICES:
            return _CHOICES[kind].get(value, str(value))
        if kind == "type":
            file_type = _TYPES.get(value & abi.S_IFMT)
            return f"{file_type}|{value & 0o7777:#o}" if file_type else f"{value:#o}"
        if kind == "mode":
            return f"{value:#o}"
    if isinstance(value, bytes):
        return format_bytes(value, as_text=kind == "path")
    if isinstance(value, str):
        return format_bytes(value.encode(), as_text=True)
    if isinstance(value, tuple):
        parts = _MOUNT_ATTRS if kind == "mount_attrs" else ("data",) * len(value)
        inner = ", ".join(map(_format_argument, parts, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


def format_bytes(value: bytes, as_text: bool = False) -> str:
    """A literal that reads back; text if it can be shown as text, and runs as ``b"x" * 5000``."""
    text = _text(value) if as_text else None
    as_text = text is not None
    if len(value) > 24:
        for period in (1, 2, 4, 8, 16):
            times, rest = divmod(len(value), period)
            if not rest and value[:period] * times == value:
                return f"{format_bytes(value[:period], as_text)} * {times}"
        run = len(value) - len(value.rstrip(value[-1:]))
        if run > 16:
            head = format_bytes(value[:-run], as_text)
            return f"{head} + {format_bytes(value[-run:], as_text)}"
    if text is not None:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value) if b'"' in value else 'b"' + repr(value)[2:-1].replace("\\'", "'") + '"'


def _text(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def _format_flags(value: int, known: list[tuple[str, int]]) -> str:
    names = []
    rest = value
    for name, bits in known:
        if rest & bits == bits:
            names.append(name)
            rest &= ~bits
    if rest or not names:
        names.append(f"{rest:#x}" if rest else "0")
    return "|".join(names)


def parse_step(line: str) -> Step:
    """A script's line as a step. Raises: ValueError that says what is wrong with it."""
    task, colon, text = line.partition(":")
    if not colon or not re.fullmatch(r"\w+", task.strip()):
        raise ValueError(f"expected 'task: call(...)': {line.strip()}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{error.msg}: {line.strip()}") from None
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.keywords:
        raise ValueError(f"expected a call: {line.strip()}")
    return make_step(task.strip(), tree.func.id, *(_evaluate(node) for node in tree.args))


def parse_script(text: str) -> list[Step]:
    """Every step of a script. Raises: ValueError with the line's number."""
    steps = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            steps.append(parse_step(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return steps


def _evaluate(node: ast.expr) -> Any:
    """Literals, names of constants, and ``|``, ``*``, ``+``, ``<<`` and ``-`` between them."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in NAMES:
            return NAMES[name]
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(map(_evaluate, items))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _evaluate(left) | _evaluate(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _evaluate(left) * _evaluate(right)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _evaluate(left) + _evaluate(right)
        case ast.BinOp(left=left, op=ast.LShift(), right=right):
            return _evaluate(left) << _evaluate(right)
    raise ValueError(f"not a constant: {ast.unparse(node)}")
