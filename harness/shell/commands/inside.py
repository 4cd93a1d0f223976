"""Commands that look inside, and those about mounts and tasks, of which only a kernel knows."""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from harness.shell.command import Commands, Invocation, Usage, argument
from harness.shell.commands.listing import print_table, shown
from vfs import abi

_JSON: Final = argument("--json", action="store_true", help="the data itself")
_MOUNT_WORDS: Final = {
    "ro": abi.MS_RDONLY, "nosuid": abi.MS_NOSUID, "nodev": abi.MS_NODEV,
    "noexec": abi.MS_NOEXEC, "noatime": abi.MS_NOATIME, "nodiratime": abi.MS_NODIRATIME,
    "relatime": abi.MS_RELATIME, "nosymfollow": abi.MS_NOSYMFOLLOW, "remount": abi.MS_REMOUNT,
    "bind": abi.MS_BIND, "rbind": abi.MS_BIND | abi.MS_REC, "sync": abi.MS_SYNCHRONOUS,
}  # fmt: skip
_CLEARED: Final = {
    "rw": abi.MS_RDONLY, "suid": abi.MS_NOSUID, "dev": abi.MS_NODEV, "exec": abi.MS_NOEXEC,
    "atime": abi.MS_NOATIME, "diratime": abi.MS_NODIRATIME,
}  # fmt: skip
_PROPAGATION: Final = {
    "shared": abi.MS_SHARED, "slave": abi.MS_SLAVE, "private": abi.MS_PRIVATE,
    "unbindable": abi.MS_UNBINDABLE,
}  # fmt: skip
_NAMESPACES: Final = {"m": abi.CLONE_NEWNS, "U": abi.CLONE_NEWUSER}


def register(commands: Commands) -> None:
    """Put the family into the table."""
    _register_mounts(commands)
    _register_tasks(commands)
    _register_views(commands)


def _register_mounts(commands: Commands) -> None:
    add = commands.add

    @add(
        "mount",
        argument("-t", metavar="TYPE", help="a new filesystem of this type"),
        argument("-o", action="append", default=[], metavar="OPTION,...", help="options"),
        argument("--bind", action="store_true", help="SOURCE, a place of the tree, once more"),
        argument("--rbind", action="store_true", help="and what is mounted below"),
        argument("--move", action="store_true", help="the mount at SOURCE to TARGET"),
        *(
            argument(f"--make-{'r' if recursive else ''}{word}", action="append_const",
                     dest="change", const=flag | recursive,
                     help="and below" if recursive else f"TARGET is {word}")
            for word, flag in _PROPAGATION.items()
            for recursive in (0, abi.MS_REC)
        ),
        argument("words", nargs="*", metavar="SOURCE TARGET"),
    )  # fmt: skip
    def mount(invocation: Invocation, given: argparse.Namespace) -> None:
        """mount a filesystem or a place of the tree; without words list mounts"""
        if not given.words:
            invocation.stdout.write(invocation.sys.mounts())
            return
        _mount(invocation, given)

    @add("umount", argument("-l", action="store_true", help="now, and the rest when it is unused"),
         argument("-f", action="store_true", help="although requests are under way"),
         argument("-R", action="store_true", help="and what is mounted below"),
         argument("paths", nargs="+", metavar="PATH"))  # fmt: skip
    def umount(invocation: Invocation, given: argparse.Namespace) -> None:
        """take mounts off"""
        flags = (abi.MNT_DETACH if given.l else 0) | (abi.MNT_FORCE if given.f else 0)
        for path in given.paths:
            for place in _below(invocation, path) if given.R else [path]:
                try:
                    invocation.sys.umount2(place, flags)
                except OSError as error:
                    invocation.fail(place, error)
                    if error.errno == errno.EBUSY:
                        invocation.complain(f"{place}: `why-busy {place}` tells why")

    @add("findmnt", _JSON, argument("path", nargs="?", metavar="PATH"))
    def findmnt(invocation: Invocation, given: argparse.Namespace) -> None:
        """show mounts as a tree with their options"""
        rows = _inspect(invocation, "mounts", path=given.path)
        if _as_json(invocation, given, rows):
            return
        table: list[tuple[str, ...]] = [("TARGET", "SOURCE", "FSTYPE", "OPTIONS")]
        for prefix, row in _tree_of(rows):
            source = row["source"] + (f"[{row['shows']}]" if row["shows"] != "/" else "")
            options = ",".join(row["flags"]) or "rw"
            table.append((prefix + _place(row), source, row["type"], options))
        print_table(invocation, table, left=(0, 1, 2, 3))

    @add("pivot_root", argument("new_root", metavar="NEW"), argument("put_old", metavar="OLD"))
    def pivot_root(invocation: Invocation, given: argparse.Namespace) -> None:
        """make NEW the root, and move the old one to OLD below it"""
        invocation.sys.pivot_root(given.new_root, given.put_old)

    @add("chroot", argument("path", metavar="DIRECTORY"))
    def chroot(invocation: Invocation, given: argparse.Namespace) -> None:
        """make a directory the task's root, and go there"""
        invocation.sys.chroot(given.path)
        invocation.sys.chdir("/")


def _register_tasks(commands: Commands) -> None:
    add = commands.add

    @add("unshare", argument("-m", action="store_true", help="a mount namespace"),
         argument("-U", action="store_true", help="a user namespace"))  # fmt: skip
    def unshare(invocation: Invocation, given: argparse.Namespace) -> None:
        """give the task namespaces of its own"""
        flags = sum(flag for letter, flag in _NAMESPACES.items() if getattr(given, letter))
        if not flags:
            raise Usage("say which: -m, -U")
        invocation.sys.unshare(flags)

    @add("umask", argument("mask", nargs="?", metavar="MASK"))
    def umask(invocation: Invocation, given: argparse.Namespace) -> None:
        """show or set what is taken from the mode of new files"""
        if given.mask is None:
            before = invocation.sys.umask(0)
            invocation.sys.umask(before)
            invocation.print(f"{before:04o}")
            return
        try:
            mask = int(given.mask, 8)
        except ValueError:
            raise Usage(f"{given.mask}: an octal number is needed") from None
        invocation.sys.umask(mask)

    @add("task", argument("action", choices=["list", "new", "switch", "exit"], nargs="?",
                          default="list", help="list (default), new, switch, exit"),
         argument("name", nargs="?", metavar="NAME"))  # fmt: skip
    def task(invocation: Invocation, given: argparse.Namespace) -> None:
        """the shell's tasks: list them, make a clone of the current one, switch, end one"""
        session = invocation.session
        if given.action == "list":
            for name, pid in session.tasks.items():
                invocation.print(f"{'*' if pid == session.task else ' '} {name} ({pid})")
            return
        if given.name is None:
            raise Usage("its name is missing")
        if given.action == "new":
            if given.name in session.tasks:
                raise Usage(f"{given.name}: there is one of this name")
            session.tasks[given.name] = session.kernel.create_task(session.task)
        if given.name not in session.tasks:
            raise Usage(f"{given.name}: there is no such task")
        if given.action == "exit":
            if session.tasks[given.name] == session.task:
                raise Usage(f"{given.name}: it is the current one; switch first")
            session.kernel.exit_task(session.tasks.pop(given.name))
        else:
            session.task = session.tasks[given.name]

    @add("as", argument("who", metavar="UID[:GID[,GROUP...]]"),
         argument("words", nargs=argparse.REMAINDER, metavar="COMMAND"))  # fmt: skip
    def as_(invocation: Invocation, given: argparse.Namespace) -> int:
        """run a command as another user; without one, be that user from now on"""
        session = invocation.session
        child = session.kernel.create_task(session.task, **_identity(given.who))
        if not given.words:
            name = next(name for name, pid in session.tasks.items() if pid == session.task)
            session.kernel.exit_task(session.task)
            session.tasks[name] = session.task = child
            return 0
        before, session.task = session.task, child
        try:
            streams = invocation.stdin, invocation.stdout, invocation.stderr
            return session.invoke(given.words, *streams)
        finally:
            session.task = before
            session.kernel.exit_task(child)


def _register_views(commands: Commands) -> None:
    add = commands.add
    tables: list[tuple[str, str, str, tuple[str, ...]]] = [
        ("fds", "fds", "list the task's open descriptors",
         ("fd", "access", "position", "references", "path")),
        ("locks", "locks", "list all advisory locks",
         ("kind", "access", "filesystem", "ino", "start", "end", "pid", "waiters")),
        ("devices", "devices", "list the devices that have drivers here",
         ("kind", "major", "minor", "mode", "name")),
        ("ps", "tasks", "list all tasks of the VFS",
         ("pid", "uid", "gid", "namespace", "umask", "fds", "root", "cwd", "comm")),
    ]  # fmt: skip
    for name, view, help_text, columns in tables:
        run = _table(view, columns)
        run.__doc__ = help_text
        add(name, _JSON)(run)

    @add("mounts", _JSON, argument("path", nargs="?", metavar="PATH"))
    def mounts(invocation: Invocation, given: argparse.Namespace) -> None:
        """draw the tree of mounts with peer groups, masters, and what is hidden"""
        rows = _inspect(invocation, "mounts", path=given.path)
        if not _as_json(invocation, given, rows):
            for prefix, row in _tree_of(rows):
                invocation.print(f"{prefix}{_place(row)}  {_mount_line(row)}")

    @add("propagate", _JSON, argument("--bind", metavar="SOURCE", help="a bind of this place"),
         argument("target", metavar="TARGET"))  # fmt: skip
    def propagate(invocation: Invocation, given: argparse.Namespace) -> None:
        """tell where something mounted on TARGET would appear, and why; nothing is mounted"""
        rows = _inspect(invocation, "propagate", target=given.target, source=given.bind)
        if _as_json(invocation, given, rows):
            return
        for row in rows:
            where = "" if row["own"] else f" in namespace {row['namespace']}"
            place = "(out of reach)" if row["path"] is None else shown(row["path"])
            line = f"{place}{where}: {row['relation']}, mount {row['mount']}; {row['copy']}"
            invocation.print(line)

    @add("dentries", _JSON, argument("--depth", type=int, metavar="N", help="not deeper"),
         argument("path", nargs="?", default="/", metavar="PATH"))  # fmt: skip
    def dentries(invocation: Invocation, given: argparse.Namespace) -> None:
        """draw the cache of names: positive, negative, mounted on, references, unused"""
        found = _inspect(invocation, "dentries", path=given.path, depth=given.depth)
        if not _as_json(invocation, given, found):
            invocation.print(f"{shown(found['path'])}  {_dentry_line(found)}  ({found['cache']})")
            for line in _dentry_lines(found, ""):
                invocation.print(line)

    @add("inode", _JSON, argument("path", metavar="PATH"))
    def inode(invocation: Invocation, given: argparse.Namespace) -> None:
        """show an inode, and the names by which the cache knows it"""
        _pairs(invocation, given, _inspect(invocation, "inode", path=given.path))

    @add("refs", _JSON, argument("path", nargs="?", metavar="PATH"))
    def refs(invocation: Invocation, given: argparse.Namespace) -> None:
        """tell who holds the mount, the dentry and the inode of a path; or what lives"""
        rows = _inspect(invocation, "refs", path=given.path)
        if _as_json(invocation, given, rows):
            return
        for row in rows:
            invocation.print(f"{row['object']}: {row['references']}")
            for kind, entries in (("held by", row["holders"]), ("taken at", row["lines"])):
                for entry in entries:
                    invocation.print(f"    {kind} {entry}")

    @add("why-busy", _JSON, argument("path", metavar="PATH"))
    def why_busy(invocation: Invocation, given: argparse.Namespace) -> int:
        """tell what keeps a mount from being unmounted; succeeds if nothing does"""
        found = _inspect(invocation, "busy", path=given.path)
        if not _as_json(invocation, given, found):
            if not found["root"]:
                invocation.print(f"{given.path} is no mount point; about the mount that it is on:")
            for reason in found["reasons"]:
                invocation.print(f"{reason['what']}: {reason['cure']}")
            if not found["reasons"]:
                invocation.print("nothing keeps it busy")
        return int(found["busy"])

    @add("statistics", _JSON)
    def statistics(invocation: Invocation, given: argparse.Namespace) -> None:
        """count what lives, and what is cached"""
        found = _inspect(invocation, "statistics")
        if not _as_json(invocation, given, found):
            live = found.pop("live")
            _pairs(invocation, given, {**found, **{f"live {k}": v for k, v in live.items()}})

    @add("check", _JSON)
    def check(invocation: Invocation, given: argparse.Namespace) -> int:
        """check every invariant of the VFS"""
        found = _inspect(invocation, "check")
        if not _as_json(invocation, given, found):
            broken = found["broken"]
            invocation.print("all invariants hold" if broken is None else f"broken: {broken}")
        return int(found["broken"] is not None)

    @add("extents", _JSON, argument("path", metavar="FILE"))
    def extents(invocation: Invocation, given: argparse.Namespace) -> None:
        """show where a file has data and where holes"""
        rows = list(_extents(invocation, given.path))
        if _as_json(invocation, given, rows):
            return
        size = rows[-1]["end"] if rows else 0
        invocation.print(f"{size} bytes")
        for row in rows:
            width = max(1, round(40 * (row["end"] - row["start"]) / size))
            bar = ("█" if row["kind"] == "data" else "·") * width
            invocation.print(f"{row['start']:>12} {row['end']:>12}  {row['kind']:4}  {bar}")

    @add("explain", _JSON, argument("action", choices=["open", "walk"], help="open or walk"),
         argument("path", metavar="PATH"),
         argument("-r", action="store_true", help="for reading"),
         argument("-w", action="store_true", help="for writing"),
         argument("-n", action="store_true", help="do not follow a link at the end"))  # fmt: skip
    def explain(invocation: Invocation, given: argparse.Namespace) -> int:
        """walk a path step by step, and tell what decides; succeeds as the call would"""
        opening = given.action == "open"
        found = _inspect(
            invocation, "explain", path=given.path, write=given.w, follow=not given.n,
            read=opening and (given.r or not given.w),
        )  # fmt: skip
        if not _as_json(invocation, given, found):
            for step in found["steps"]:
                target = f" -> {shown(step['target'])}" if "target" in step else ""
                name = shown(step["name"])
                invocation.print(f"{step['kind']:10} {name}{target}  [{step['text']}]")
            if found["errno"] is None:
                invocation.print("it succeeds")
            else:
                invocation.print(f"it fails with {found['name']}: {found['message']}")
                if found["advice"]:
                    invocation.print(f"to change that: {found['advice']}")
        return int(found["errno"] is not None)

    @add("errno", argument("number", metavar="NUMBER|NAME"))
    def errno_(invocation: Invocation, given: argparse.Namespace) -> None:
        """tell what an error number means"""
        names = {name: number for number, name in errno.errorcode.items()}
        text = given.number.upper()
        number = int(text) if text.isdecimal() else names.get(text)
        if number is None or number not in errno.errorcode:
            raise Usage(f"{given.number}: there is no such error")
        invocation.print(f"{errno.errorcode[number]} {number}: {os.strerror(number)}")


# mount and umount


def _mount(invocation: Invocation, given: argparse.Namespace) -> None:
    sys = invocation.sys
    flags, cleared, data = _mount_options(given.o)
    flags |= abi.MS_BIND * (given.bind or given.rbind) | abi.MS_REC * given.rbind
    flags |= abi.MS_MOVE * given.move
    *source, target = given.words
    if len(source) > 1:
        raise Usage("at most a source and a target")
    first: str | None = source[0] if source else None
    moving = flags & (abi.MS_BIND | abi.MS_MOVE) and not flags & abi.MS_REMOUNT
    if moving and first is None:
        raise Usage("the source is missing")
    if first is not None or given.t is not None or flags & abi.MS_REMOUNT:
        if not (moving or flags & abi.MS_REMOUNT) and given.t is None:
            raise Usage("-t TYPE, --bind or --move is needed")
        if flags & abi.MS_REMOUNT and given.t is None:
            flags = flags & ~abi.MS_REC | _flags_now(invocation, target) & ~cleared
        own = flags & ~(abi.MS_BIND | abi.MS_REC) if flags & abi.MS_BIND else 0
        first_call = flags if flags & (abi.MS_REMOUNT | abi.MS_MOVE) else flags & ~own
        sys.mount(first, target, given.t, first_call, data)
        if own and not flags & (abi.MS_REMOUNT | abi.MS_MOVE):
            # Flags beside MS_BIND are ignored by mount(2), so they need a call of their own.
            sys.mount(None, target, None, abi.MS_REMOUNT | abi.MS_BIND | own, None)
    elif not given.change:
        raise Usage("what to mount is missing")
    for change in given.change or ():
        sys.mount(None, target, None, change, None)


def _mount_options(words: list[str]) -> tuple[int, int, str | None]:
    """Flags, flags that are to be taken off, and what is the filesystem's."""
    flags = cleared = 0
    rest = []
    for word in ",".join(words).split(",") if words else ():
        if word in _MOUNT_WORDS:
            flags |= _MOUNT_WORDS[word]
        elif word in _CLEARED:
            cleared |= _CLEARED[word]
        elif word:
            rest.append(word)
    return flags, cleared, ",".join(rest) or None


def _flags_now(invocation: Invocation, target: str) -> int:
    """A remount keeps what is not named, as mount(8) has it by reading mountinfo."""
    rows = _inspect(invocation, "mounts", path=target)
    return sum(_MOUNT_WORDS[word] for word in rows[0]["flags"])


def _below(invocation: Invocation, path: str) -> Iterator[str]:
    """The mount points at and below `path`, deepest first."""
    rows = _inspect(invocation, "mounts", path=path)
    return (row["mountpoint"] for row in reversed(rows) if row["mountpoint"] is not None)


def _identity(text: str) -> dict[str, Any]:
    """UID[:GID[,GROUP...]] as `create_task` takes it. Raises: Usage."""
    uid, _, rest = text.partition(":")
    numbers = rest.split(",") if rest else [uid]
    if not all(number.isdecimal() for number in (uid, *numbers)):
        raise Usage(f"{text}: numbers are needed, as 1000 or 1000:100,27")
    gid, *groups = map(int, numbers)
    return {"uid": int(uid), "gid": gid, "groups": groups}


# Views


def _inspect(invocation: Invocation, view: str, **arguments: Any) -> Any:
    session = invocation.session
    return session.kernel.inspect(session.task, view, **arguments)


def _as_json(invocation: Invocation, given: argparse.Namespace, data: Any) -> bool:
    if given.json:
        invocation.print(json.dumps(data, indent=2))
    return bool(given.json)


def _table(view: str, columns: tuple[str, ...]) -> Callable[[Invocation, argparse.Namespace], None]:
    def run(invocation: Invocation, given: argparse.Namespace) -> None:
        rows = _inspect(invocation, view)
        if _as_json(invocation, given, rows) or not rows:
            return
        cells = [
            tuple("-" if row[c] is None else shown(str(row[c])) for c in columns) for row in rows
        ]
        heading = tuple(column.upper() for column in columns)
        numbers = [all(cell[i].isdecimal() or cell[i] == "-" for cell in cells)
                   for i in range(len(columns))]  # fmt: skip
        left = tuple(i for i, number in enumerate(numbers) if not number)
        print_table(invocation, [heading, *cells], left=left)

    return run


def _pairs(invocation: Invocation, given: argparse.Namespace, data: dict[str, Any]) -> None:
    if _as_json(invocation, given, data):
        return
    width = max(map(len, data))
    for name, value in data.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        invocation.print(f"{name:{width}}  {shown(text)}")


def _tree_of(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with the lines of a tree before them."""
    ids = {row["id"] for row in rows}
    below: dict[int | None, list[dict[str, Any]]] = {}
    for row in rows:
        above = row["parent"] if row["parent"] in ids else None
        below.setdefault(above, []).append(row)
    pending = [("", "", row) for row in reversed(below.get(None, []))]
    while pending:
        prefix, further, row = pending.pop()
        yield prefix, row
        children = below.get(row["id"], [])
        for number, child in reversed(list(enumerate(children, 1))):
            last = number == len(children)
            lines = further + ("└─" if last else "├─")
            pending.append((lines, further + ("  " if last else "│ "), child))


def _place(row: dict[str, Any]) -> str:
    return "(out of reach)" if row["mountpoint"] is None else shown(row["mountpoint"])


def _mount_line(row: dict[str, Any]) -> str:
    words = [f"{row['type']} #{row['id']}"]
    if row["shows"] != "/":
        words.append(f"shows {shown(row['shows'])}")
    words += [",".join(row["flags"])] if row["flags"] else []
    if row["group"]:
        peers = f" with {' '.join(f'#{p}' for p in row['peers'])}" if row["peers"] else ""
        words.append(f"shared:{row['group']}{peers}")
    words += [f"<- master:{row['master']}"] if row["master"] else []
    words += [word for word in ("unbindable", "locked", "hidden") if row[word]]
    return "  ".join(words)


def _dentry_line(row: dict[str, Any]) -> str:
    if row["inode"] is None:
        words = ["negative"]
    else:
        words = [f"{row['type']} {row['inode']}"]
    words.append("unused" if row["unused"] else f"refs {row['references']}")
    words += ["pinned"] if row["pinned"] else []
    words += [f"mounted {row['mounted']}"] if row["mounted"] else []
    words += [] if row["hashed"] else ["unhashed"]
    words += [f"{row['left_out']} not shown"] if row["left_out"] else []
    return "  ".join(words)


def _dentry_lines(row: dict[str, Any], indent: str) -> Iterator[str]:
    for number, child in enumerate(row["children"], 1):
        last = number == len(row["children"])
        yield f"{indent}{'└─' if last else '├─'}{shown(child['name'])}  {_dentry_line(child)}"
        yield from _dentry_lines(child, indent + ("  " if last else "│ "))


def _extents(invocation: Invocation, path: str) -> Iterator[dict[str, Any]]:
    sys = invocation.sys
    fd = sys.open(path, abi.O_RDONLY | abi.O_CLOEXEC, 0)
    try:
        size = sys.fstat(fd).st_size
        at = 0
        while at < size:
            try:
                data = sys.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = size
            if data > at:
                yield {"kind": "hole", "start": at, "end": data}
            if data < size:
                at = sys.lseek(fd, data, os.SEEK_HOLE)
                yield {"kind": "data", "start": data, "end": at}
            else:
                at = size
    finally:
        sys.close(fd)
