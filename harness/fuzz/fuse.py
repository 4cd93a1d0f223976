"""Requests to a FuseServer in this process, and what must hold of every reply."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import tempfile
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from fsimpl.passthrough import oslib
from harness.compose import Tree
from harness.fuse import abi
from harness.fuse.cache import POLICIES
from harness.fuse.opcodes import BY_NUMBER, DATA_OUT, SILENT
from harness.fuse.server import FuseServer
from harness.fuzz.case import HANDLE, NODE, Case, Deed, Message, Outcome, Part, Ref, Request, Step
from harness.fuzz.requests import ENTRY_REPLIES, RequestMaker, nodes_listed
from harness.mountspec import MountSpec
from harness.testbed.choices import Choices
from harness.wire import PENDING, Recurring
from vfs import abi as vfs_abi
from vfs.credentials import CAP_DAC_READ_SEARCH
from vfs.errors import InvariantViolation

CHECK_EVERY: Final = 64
"""Requests after which all invariants are checked."""
_WATCHED: Final = 4
_WATCHED_SIZE: Final = 8192
_ANSWER_SECONDS: Final = 60
_MAY_WAIT: Final = frozenset(("READ", "WRITE", "SETLKW", "IOCTL"))
_DESTROY: Final = 38
_NO_NODE: Final = 0xDEAD
_BOUNDS: Final = (("size", "8m"), ("nr_inodes", "2000"))
_HANDLES: Final = ("never", "prefer", "mandatory")
_PASSTHROUGH: Final = (
    "", "xattr", "xattr,posix_acl", "xattr,xattrmap=:map::user.virtiofs.:", "ascii_casefold",
    "cache=always,writeback", "cache=metadata,timeout=0", "cache=never,allow_direct_io",
    "noreaddirplus,killpriv_v2", "preserve_noatime,noannounce_submounts,nokillpriv_v2",
)  # fmt: skip
"""Options that go with each other."""
_SECRET: Final = b"CANARY-4b1f0c2d77"
"""Stands in every file outside of the shared directory; no request has it."""


class Broken(Exception):
    """Something that must hold does not."""


class Collector(logging.Handler):
    """Errors that were logged, with their tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def take(self) -> str:
        """What was logged since the last call."""
        texts, self.texts = self.texts, []
        return "\n".join(texts)


class Playground:
    """A directory to share, ``shared``, beside one that nobody inside may see or change."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.shared = top / "shared"
        self.outside = top / "outside"
        self.limbo = top / "limbo"
        self.outside.mkdir()
        (self.outside / "inner").mkdir()
        for name in ("secret", "inner/secret"):
            (self.outside / name).write_bytes(_SECRET)
        self.renew()
        self._before = self._look()

    def renew(self) -> None:
        """Empty the shared directory, and put a few files into it."""
        for directory in (self.shared, self.limbo):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        shared = self.shared
        (shared / "a").mkdir()
        (shared / "a" / "b").write_bytes(b"inside")
        (shared / "c").write_bytes(b"inside" * 1000)
        (shared / "out").symlink_to("../outside")
        (shared / "d").symlink_to(self.outside / "secret")

    def _look(self) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for path in ("", "secret", "inner", "inner/secret"):
            info = os.lstat(self.outside / path)
            found.append(
                (path, info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_nlink,
                 info.st_mtime_ns, info.st_ctime_ns)
            )  # fmt: skip
        return found

    def check(self) -> None:
        """Raises: Broken if anything outside was touched."""
        if sorted(os.listdir(self.top)) != ["limbo", "outside", "shared"]:
            raise Broken(f"beside the shared directory is now {os.listdir(self.top)}")
        now = self._look()
        if now != self._before or sorted(os.listdir(self.outside)) != ["inner", "secret"]:
            raise Broken(f"something outside was changed: {self._before} became {now}")


class Awaited:
    """The completion of one request, its buffer, and how it was answered."""

    __slots__ = ("answered", "expected", "lengths", "reply", "unique")

    def __init__(self, unique: int, reply: bytearray) -> None:
        self.unique = unique
        self.reply = reply
        self.lengths: list[int] = []
        self.expected = False
        self.answered = threading.Event()

    def __call__(self, length: int) -> None:
        self.lengths.append(length)
        self.answered.set()


class Client:
    """Sends requests to a server and judges its replies. Raises: Broken, wherever it may."""

    def __init__(self, server: FuseServer, log: Collector, *, alone: bool = True) -> None:
        """``alone``: nobody else takes away what it was given, before it has looked."""
        self.server = server
        self.log = log
        self._alone = alone
        self.answers: Counter[tuple[str, str]] = Counter()
        self.given: dict[Ref, int] = {}
        self._waiting: list[Awaited] = []
        self._recent: deque[tuple[bytearray, bytes]] = deque()
        self._last: Awaited | None = None

    def assemble(self, request: Request) -> bytes:
        """The request's bytes."""
        body = b"".join([self._part(part) for part in request.body])
        for start, end, data in request.edits:
            body = body[:start] + data + body[end:]
        uid, gid, pid, extensions = request.ids
        length = 40 + len(body) + request.length & 0xFFFFFFFF
        nodeid = request.nodeid
        if isinstance(nodeid, Ref):
            nodeid = self.given.get(nodeid, _NO_NODE)
        return (
            abi.IN_HEADER.pack(
                length, request.opcode, request.unique, nodeid, uid, gid, pid, extensions, 0
            )
            + body
        )

    def _part(self, part: Part) -> bytes:
        if isinstance(part, bytes):
            return part
        return self.given.get(part, _NO_NODE).to_bytes(8, "little")

    def send(self, request: Request) -> tuple[int, bytes]:
        """Send it and judge the reply.

        Returns its length or PENDING, and what follows the header if the request succeeded.
        """
        data = bytearray(self.assemble(request))
        room = sum(request.reply)
        reply = bytearray(room)
        awaited = Awaited(request.unique, reply)
        length = self._handle(_cut(data, request.cuts), _pieces(reply, request.reply), awaited)
        row = BY_NUMBER.get(request.opcode)
        name = "unknown" if row is None else row.name
        if length == PENDING:
            if name not in _MAY_WAIT:
                raise Broken(f"{name} waits")
            awaited.expected = True
            self._waiting.append(awaited)
            self.answers[name, "waits"] += 1
            return length, b""
        if awaited.lengths:
            raise Broken(f"{name}: answered twice, with {length} and {awaited.lengths}")
        if not length:
            if (row is None or row.kind != SILENT) and room >= 16:
                raise Broken(f"{name} was not answered, although there is room for {room} bytes")
            self.answers[name, ""] += 1
            return 0, b""
        if row is not None and row.kind == SILENT:
            raise Broken(f"{name} was answered, with {length} bytes")
        if len(reply) <= _WATCHED_SIZE:
            self._watch(reply)
        error = self._judge_header(awaited, length)
        self.answers[name, errno.errorcode[error] if error else ""] += 1
        if error:
            return length, b""
        if row is None:
            raise Broken(f"opcode {request.opcode} succeeded")
        said = int.from_bytes(data[:4], "little")
        if said > len(data) or said < 40:
            raise Broken(f"{name} of {len(data)} bytes that says {said} succeeded")
        payload = bytes(reply[16:length])
        self._judge_payload(name, row.result, row.kind, data, payload)
        self._learn(request, name, payload)
        return length, payload

    def noise(self, message: Message) -> None:
        """Bytes that need not be a request."""
        data = bytearray(message.data)
        reply = bytearray(144)
        awaited = Awaited(int.from_bytes(data[8:16].ljust(8, b"\0"), "little"), reply)
        length = self._handle([memoryview(data)], [memoryview(reply)], awaited)
        if length == PENDING:
            awaited.expected = True
            self._waiting.append(awaited)
        elif length:
            if len(data) < 40:
                raise Broken(f"{len(data)} bytes, which are no request, were answered")
            self._judge_header(awaited, length)

    def _handle(self, request: list[memoryview], reply: list[memoryview], awaited: Awaited) -> int:
        # Half of them as from a chain that may come again, which is read in another way.
        if awaited.unique & 2:
            request = Recurring(request)
        try:
            length = self.server.handle(request, reply, awaited)
        except Exception as error:
            raise Broken(f"handle raised {error!r}") from error
        if self.log.texts:
            raise Broken(f"logged:\n{self.log.take()}")
        return length

    @staticmethod
    def _judge_header(awaited: Awaited, length: int) -> int:
        """The errno of a reply."""
        if not 16 <= length <= len(awaited.reply):
            raise Broken(f"a reply of {length} bytes in room for {len(awaited.reply)}")
        said, error, unique = abi.OUT_HEADER.unpack_from(awaited.reply)
        if said != length or unique != awaited.unique:
            raise Broken(
                f"a reply of {length} bytes to request {awaited.unique} says that it has {said}"
                f" and answers {unique}"
            )
        if error and (length != 16 or -error not in errno.errorcode):
            raise Broken(f"an error reply of {length} bytes with error {error}")
        return -int(error)

    def _judge_payload(
        self, name: str, result: int, kind: int, data: bytearray, payload: bytes
    ) -> None:
        size = len(payload)
        if kind != DATA_OUT:
            if size != result:
                raise Broken(f"{name}: {size} bytes instead of {result}")
            return
        asked = int.from_bytes(data[56:60], "little")
        if name in ("READ", "READDIR", "READDIRPLUS"):
            if size > asked:
                raise Broken(f"{name} of {asked} bytes got {size}")
            if name != "READ":
                try:
                    nodes = nodes_listed(payload, name == "READDIRPLUS")
                except ValueError as error:
                    raise Broken(f"{name}: {error}") from None
                known = self.server.nodes.by_id
                if self._alone and any(nodeid not in known for nodeid, _ in nodes):
                    raise Broken(f"READDIRPLUS gave nodes that do not exist: {nodes}")
        elif name in ("GETXATTR", "LISTXATTR"):
            asked = int.from_bytes(data[40:44], "little")
            if size > (asked or 8):
                raise Broken(f"{name} of {asked} bytes got {size}")
        if _SECRET in payload:
            raise Broken(f"{name} shows what lies outside")

    def _learn(self, request: Request, name: str, payload: bytes) -> None:
        given, number = self.given, request.number
        if name == "READDIRPLUS":
            for index, (nodeid, _) in enumerate(nodes_listed(payload)):
                given[Ref(NODE, number, index)] = nodeid
        elif name in ENTRY_REPLIES:
            nodeid = int.from_bytes(payload[:8], "little")
            if nodeid and self._alone and nodeid not in self.server.nodes.by_id:
                raise Broken(f"{name} gave node {nodeid}, which does not exist")
            given[Ref(NODE, number)] = nodeid
            given[Ref(HANDLE, number)] = int.from_bytes(payload[128:136], "little")
        elif name in ("OPEN", "OPENDIR"):
            given[Ref(HANDLE, number)] = int.from_bytes(payload[:8], "little")

    def _watch(self, reply: bytearray) -> None:
        """Nobody may write to a buffer after its request was answered."""
        recent = self._recent
        recent.append((reply, bytes(reply)))
        if len(recent) > _WATCHED:
            old, was = recent.popleft()
            if old != was:
                raise Broken("the buffer of a request that was answered has changed")

    def check(self) -> None:
        """Raises: Broken, for any invariant."""
        try:
            self.server.check()
            self.server.vfs.check()
        except InvariantViolation as error:
            raise Broken(f"invariant: {error}") from error

    def finish(self) -> None:
        """The session has ended: each request that waited must have been answered, once."""
        end = time.monotonic() + _ANSWER_SECONDS
        for awaited in self._waiting:
            if not awaited.answered.wait(max(end - time.monotonic(), 0)):
                raise Broken(f"request {awaited.unique} was never answered")
            if len(awaited.lengths) != 1:
                raise Broken(f"request {awaited.unique} was answered {len(awaited.lengths)} times")
            if awaited.lengths[0]:
                self._judge_header(awaited, awaited.lengths[0])
        for reply, was in self._recent:
            if reply != was:
                raise Broken("the buffer of a request that was answered has changed")
        if self.log.texts:
            raise Broken(f"logged:\n{self.log.take()}")
        self.check()


class FuseFuzzer:
    """Cases of FUSE requests: tmpfs, devtmpfs and a shared directory in one tree, a fresh one for
    each case.
    """

    target: Final = "fuse"

    def __init__(self, scratch: Path | None = None) -> None:
        """``scratch`` is a directory to share something of. It must not matter that it is filled:
        without it no directory of the host is shared.
        """
        self._host = scratch is not None
        self._top = Path(tempfile.mkdtemp(prefix="dentry-fuzz-", dir=scratch))
        self.playground = Playground(self._top)
        self.log = Collector()
        self._logger = logging.getLogger()
        self._logger.addHandler(self.log)

    def close(self) -> None:
        self._logger.removeHandler(self.log)
        shutil.rmtree(self._top, ignore_errors=True)

    def settings(self, choices: Choices) -> dict[str, Any]:
        """Options of a server and of a passthrough, whether the client can be notified, a directory
        is shared, and how few descriptors are left for it (0: enough).
        """
        may_open = oslib.capget()[0] >> CAP_DAC_READ_SEARCH & 1
        handles = choices.one_of(_HANDLES if may_open else _HANDLES[:2])
        return {
            "passthrough": f"inode_file_handles={handles},{choices.one_of(_PASSTHROUGH)}",
            "descriptors": choices.one_of((0, 0, 20, 24)),
            "host": self._host,
            "default_permissions": not choices.chance(25),
            "cache": choices.one_of(("auto", "never", "metadata", "always")),
            "announce_submounts": not choices.chance(30),
            "unique_inodes": choices.one_of((None, True, False)),
            "devices": choices.one_of(("node", "emulate")),
            "local_locks": choices.chance(30),
            "notify": choices.chance(50),
        }

    def run(self, choices: Choices, inputs: int) -> Outcome:
        """See ``Fuzzer``."""
        maker = RequestMaker(choices)
        return self._run(self.settings(choices), maker.next, inputs, maker)

    def replay(self, case: Case) -> Outcome:
        """See ``Fuzzer``."""
        steps = iter(case.steps)
        return self._run(case.settings, lambda: next(steps), len(case.steps), None)

    def _run(
        self,
        settings: Mapping[str, Any],
        following: Callable[[], Step],
        count: int,
        maker: RequestMaker | None,
    ) -> Outcome:
        steps: list[Step] = []
        answers: Counter[tuple[str, str]] = Counter()
        self.playground.renew()
        self.log.take()
        before = descriptors()
        failure = ""
        try:
            with few_descriptors(settings["descriptors"]), Tree(self.mounts(settings)) as tree:
                server = make_server(tree, settings)
                client = Client(server, self.log)
                client.answers = answers
                try:
                    for done in range(count):
                        step = following()
                        steps.append(step)
                        self._perform(step, tree, client, maker)
                        if not done % CHECK_EVERY:
                            client.check()
                    server.reset()
                    client.finish()
                finally:
                    server.reset()
            self.playground.check()
            if len(descriptors()) != len(before):
                raise Broken(f"open descriptors: {before} became {descriptors()}")
        except Broken as error:
            failure = f"Broken: {error}"
        except Exception:
            failure = traceback.format_exc()
        inputs = sum(isinstance(step, Request | Message) for step in steps)
        return Outcome(Case(self.target, settings, tuple(steps)), inputs, answers, failure)

    def mounts(self, settings: Mapping[str, Any]) -> list[MountSpec]:
        mounts = [
            MountSpec("root", "tmpfs", "/", options=_BOUNDS),
            MountSpec("", "devtmpfs", "/dev"),
        ]
        if settings["host"]:
            if not self._host:
                raise ValueError("this case takes a directory of the host to share")
            shared = str(self.playground.shared)
            words = [word.partition("=") for word in settings["passthrough"].split(",") if word]
            options = tuple((key, value if equals else None) for key, equals, value in words)
            mounts.append(MountSpec("host", "passthrough", "/host", shared, options=options))
            mounts.append(MountSpec("again", "bind", "/e", source="/host"))
        return mounts

    def _perform(self, step: Step, tree: Tree, client: Client, maker: RequestMaker | None) -> None:
        if isinstance(step, Request):
            length, payload = client.send(step)
            if maker is not None:
                if length == PENDING:
                    maker.waits(step)
                elif payload or step.opcode == _DESTROY:
                    maker.learn(step, payload)
        elif isinstance(step, Message):
            client.noise(step)
        elif isinstance(step, Deed):
            deed(step, tree, self.playground)


@contextmanager
def few_descriptors(count: int) -> Generator[None]:
    """Have room for ``count`` descriptors more inside of the ``with``; 0 for no such limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(len(descriptors()) + count, soft), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def make_server(tree: Tree, settings: Mapping[str, Any]) -> FuseServer:
    options = dict(settings)
    notify = options.pop("notify")
    for name in ("host", "passthrough", "descriptors"):
        del options[name]
    options["cache"] = POLICIES[options["cache"]]
    return FuseServer(
        tree.vfs, tree.root, notify=(lambda code, payload: None) if notify else None, **options
    )


def deed(step: Deed, tree: Tree, playground: Playground) -> None:
    """Do what others do meanwhile; it may fail."""
    names = [str(name) for name in step.args]
    shared, limbo = playground.shared, playground.limbo
    task = tree.task
    try:
        match step.name, names:
            case "swap", [name]:
                _remove(shared / name)
                (shared / name).symlink_to("../outside")
            case "unlink", [name]:
                _remove(shared / name)
            case "write", [name]:
                fd = os.open(
                    shared / name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
                )
                try:
                    os.write(fd, b"host")
                finally:
                    os.close(fd)
            case "truncate", [name]:
                fd = os.open(
                    shared / name, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
                )
                os.close(fd)
            case "mkdir", [name]:
                (shared / name).mkdir()
            case "leave", [name]:
                os.rename(shared / name, limbo / name)
            case "come", [name]:
                os.rename(limbo / name, shared / name)
            case "chmod", [name]:
                if not (shared / name).is_symlink():
                    os.chmod(shared / name, step.number & 0o777)
            case "mount", [name]:
                task.mount("none", f"/{name}", "tmpfs", 0, "size=64k")
            case "umount", [name]:
                task.umount2(f"/{name}", vfs_abi.MNT_DETACH if step.number & 1 else 0)
            case "remount", []:
                flags = vfs_abi.MS_REMOUNT | vfs_abi.MS_BIND
                flags |= vfs_abi.MS_RDONLY if step.number & 1 else 0
                task.mount(None, "/host", None, flags)
            case "task_unlink", [name]:
                task.unlink(f"/{name}")
            case "task_rename", [name, other]:
                task.rename(f"/{name}", f"/host/{other}" if step.number & 1 else f"/{other}")
            case _:
                raise ValueError(f"no deed {step.name}{step.args}")
    except OSError:
        pass


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _cut(data: bytearray, cuts: Sequence[int]) -> list[memoryview]:
    view = memoryview(data)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [view[start:end] for start, end in pairwise(edges)]


def _pieces(reply: bytearray, lengths: Sequence[int]) -> list[memoryview]:
    view = memoryview(reply)
    pieces = []
    at = 0
    for length in lengths:
        pieces.append(view[at : at + length])
        at += length
    return pieces


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))
