"""The socket of a hostile frontend: messages, descriptors and memory that are not what they say,
sent to a device in a process of its own.
"""

from __future__ import annotations

import array
import errno
import faulthandler
import logging
import os
import select
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from struct import pack
from typing import Any, Final

from harness.compose import Tree
from harness.fuse.server import FuseServer
from harness.fuzz.case import Case, Deed, Message, Outcome, Scribble, Step
from harness.fuzz.fuse import Broken
from harness.fuzz.isolation import fork
from harness.fuzz.words import ODD_32, ODD_64
from harness.mountspec import MountSpec
from harness.testbed.choices import Choices
from harness.vhost_user import message as wire
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient
from harness.virtio.chain import DESCRIPTOR
from harness.virtiofs import VirtioFsDevice

MEMORY: Final = 1 << 20
GUEST: Final = 0x4000_0000
USER: Final = 0x7F00_0000_0000
_AVAIL: Final = 0x1000
_USED: Final = 0x2000
_PACKED: Final = 1 << 34
_RING: Final = 0x8000
"""Between the tables of one ring and those of the next."""
_QUEUE: Final = 32
_KINDS: Final = ("memory", "memory", "eventfd", "eventfd", "short", "null", "pipe", "directory",
                 "sealed", "socket")  # fmt: skip
_SETTLE_SECONDS: Final = 60
_STATFS: Final = 17
_Told = tuple[int, bytes, tuple[str, ...]]
"""A message: request, payload, kinds of descriptors."""
_NAMES: Final = {number: row.name for number, row in wire.REQUESTS.items()}


class ConversationMaker:
    """The frontend: sets up a device step by step, with some of the steps wrong."""

    def __init__(self, choices: Choices, queues: int, offered: tuple[int, int]) -> None:
        """``offered`` are the features of the device and of the protocol that it has."""
        self._choices = choices
        self._offered = offered
        self._queues = queues
        self.number = 0
        self._script: list[_Told] = []

    def restart(self) -> None:
        """The device has hung up."""
        self._script.clear()

    def next(self) -> Step:
        """What happens next."""
        choices = self._choices
        self.number += 1
        if self._script and not choices.chance(10):
            return self._message(*self._script.pop(0), odds=1)
        roll = choices.integer(0, 99)
        if roll < 12:
            return self._scribble()
        if roll < 24:
            return Deed(self.number, "kick", (choices.integer(0, self._queues - 1),))
        if roll < 26:
            return Deed(self.number, "truncate", (choices.one_of((0, 4096, MEMORY // 2)),))
        if roll < 28:
            return Deed(self.number, "hang up")
        if roll < 29:
            size = choices.integer(1, 40)
            return Message(self.number, bytes(choices.integer(0, 255) for _ in range(size)))
        if roll < 45:
            self._script = self.good_script()
            return self._message(*self._script.pop(0), odds=1)
        return self._message(*self._random(), odds=8)

    def _message(self, request: int, payload: bytes, fds: tuple[str, ...], odds: int) -> Message:
        """``odds`` of 100 have it wrong in each way."""
        choices = self._choices
        flags = wire.VERSION | choices.one_of((0, wire.NEED_REPLY, wire.NEED_REPLY))
        size = len(payload)
        if choices.chance(odds):
            flags = choices.one_of((0, 2, 3, 5, 0xFFFFFFFF))
        if choices.chance(odds):
            size = choices.one_of((0, 1, max(size - 1, 0), size + 1, 4096, 4097, 1 << 31))
        if choices.chance(odds):
            many = choices.one_of((0, 1, 2, 8, 9, 32, 33, 253))
            fds = tuple(choices.one_of(_KINDS) for _ in range(many))
        return Message(self.number, wire.HEADER.pack(request, flags, size) + payload, fds)

    def good_script(self) -> list[_Told]:
        """What a frontend does from the start until its rings run."""
        u64 = wire.U64.pack
        choices = self._choices
        # Mostly without packed rings, and otherwise all but one or two.
        features = self._offered[0] & ~(0 if choices.chance(20) else _PACKED)
        protocol = self._offered[1]
        if choices.chance(40):
            features &= ~(1 << choices.integer(24, 40)) | wire.VHOST_USER_F_PROTOCOL_FEATURES
            protocol &= ~(1 << choices.integer(0, 22))
        region = (GUEST, MEMORY, USER, 0)
        found: list[_Told] = [
            (wire.GET_FEATURES, b"", ()),
            (wire.SET_OWNER, b"", ()),
            (wire.SET_FEATURES, u64(features), ()),
            (wire.SET_PROTOCOL_FEATURES, u64(protocol), ()),
        ]
        if choices.chance(50):
            found.append((wire.ADD_MEM_REG, wire.SINGLE_REGION.pack(0, *region), ("memory",)))
        else:
            table = wire.MEMORY_TABLE.pack(1, 0) + wire.MEMORY_REGION.pack(*region)
            found.append((wire.SET_MEM_TABLE, table, ("memory",)))
        for index in range(self._queues):
            at = USER + index * _RING
            addresses = wire.VRING_ADDRESS.pack(index, 0, at, at + _USED, at + _AVAIL, 0)
            found += [
                (wire.SET_VRING_NUM, wire.VRING_STATE.pack(index, _QUEUE), ()),
                (wire.SET_VRING_BASE, wire.VRING_STATE.pack(index, 0), ()),
                (wire.SET_VRING_ADDR, addresses, ()),
                (wire.SET_VRING_CALL, u64(index), ("eventfd",)),
                (wire.SET_VRING_KICK, u64(index), (f"kick{index}",)),
                (wire.SET_VRING_ENABLE, wire.VRING_STATE.pack(index, 1), ()),
            ]
        found.append((wire.GET_VRING_BASE, wire.VRING_STATE.pack(0, 0), ()))
        return found

    def _random(self) -> _Told:
        choices = self._choices
        if choices.chance(10):
            request = choices.integer(0, 60)
        else:
            request = choices.one_of(tuple(wire.REQUESTS))
        row = wire.REQUESTS.get(request)
        size = row.size if row is not None else choices.integer(0, 64)
        fds = tuple(choices.one_of(_KINDS) for _ in range(row.fds if row is not None else 0))[:1]
        if size == 8:
            pair = (choices.integer(0, 3), choices.one_of(ODD_32))
            payload = choices.one_of((pack("<II", *pair), pack("<Q", choices.one_of(ODD_64))))
        elif size == 16:
            sizes = (0, 64, 4096, MEMORY, *ODD_64)
            payload = pack("<QQ", choices.one_of(sizes), choices.one_of(sizes))
        elif request in (wire.ADD_MEM_REG, wire.REM_MEM_REG):
            payload = wire.SINGLE_REGION.pack(0, *self._region())
        elif request == wire.SET_VRING_ADDR:
            at = USER + choices.one_of((0, 1, 8, MEMORY - 64, *ODD_64))
            places = (choices.one_of((at & ODD_64[-1], USER, USER + _USED)) for _ in range(4))
            payload = wire.VRING_ADDRESS.pack(choices.integer(0, 2), choices.integer(0, 1), *places)
        else:
            payload = b"".join(pack("<I", choices.one_of(ODD_32)) for _ in range(size // 4))
        if request == wire.SET_MEM_TABLE:
            count = choices.integer(0, 9)
            regions = b"".join(wire.MEMORY_REGION.pack(*self._region()) for _ in range(count))
            said = count if choices.chance(80) else choices.one_of(ODD_32)
            payload = wire.MEMORY_TABLE.pack(said, 0) + regions
            fds = tuple(choices.one_of(("memory", "memory", "short", "null")) for _ in range(count))
        return request, payload, fds

    def _region(self) -> tuple[int, int, int, int]:
        choices = self._choices
        guest = choices.one_of((GUEST, GUEST, GUEST + MEMORY, GUEST + 4096, GUEST + 1, *ODD_64))
        size = choices.one_of((MEMORY, MEMORY, 4096, 8192, 1, 0, 2 * MEMORY, *ODD_64))
        user = choices.one_of((USER, USER, USER + MEMORY, USER + 4096, *ODD_64))
        return guest, size, user, choices.one_of((0, 0, 0, 4096, 1, MEMORY, *ODD_64))

    def _scribble(self) -> Scribble:
        choices = self._choices
        place = choices.integer(0, self._queues - 1) * _RING
        kind = choices.integer(0, 3)
        if kind == 0:
            data = b"".join(
                DESCRIPTOR.pack(
                    choices.one_of((GUEST + 0x4000, GUEST, GUEST + MEMORY - 8, 0, ODD_64[-1])),
                    choices.one_of((16, 40, 80, 128, 4096, MEMORY, 0xFFFFFFFF, 0)),
                    choices.one_of((0, 1, 1, 2, 3, 4)),
                    choices.integer(0, _QUEUE),
                )
                for _ in range(8)
            )
        elif kind == 1:
            place += _AVAIL
            index = choices.one_of((0, 1, 2, 8, _QUEUE, _QUEUE + 1, 0xFFFF))
            data = pack("<HH8H", choices.integer(0, 1), index, *range(8))
        elif kind == 2:
            place += 0x4000
            data = pack("<IIQQ", choices.one_of((40, 56, 104)), choices.integer(0, 60), 7, 1)
        else:
            place += choices.integer(0, _RING - 64)
            data = bytes(choices.integer(0, 255) for _ in range(32))
        return Scribble(self.number, place, data)


class VhostUserFuzzer:
    """Conversations with one device after another frontend, in a process that must survive all."""

    target: Final = "vhost-user"

    def __init__(self, scratch: Path | None = None) -> None:
        """``scratch`` is where the socket is made (default: a temporary directory)."""
        self._top = Path(tempfile.mkdtemp(prefix="dentry-fuzz-", dir=scratch))
        self._path = str(self._top / "sock")
        self._log = self._top / "log"
        self._child = 0
        self._sock: socket.socket | None = None
        self._start()

    def close(self) -> None:
        self._hang_up()
        self._stop()
        shutil.rmtree(self._top, ignore_errors=True)

    def _start(self) -> None:
        """A fresh device."""
        self._log.write_bytes(b"")
        self._child = fork()
        if not self._child:
            status = 1
            try:
                self._serve()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        with Frontend(_connect(self._path, self._child), memory_size=MEMORY) as frontend:
            features = frontend.ask_u64(wire.GET_FEATURES)
            self.offered = features, frontend.ask_u64(wire.GET_PROTOCOL_FEATURES)
        self._expected = self._after_a_good_frontend()

    def _serve(self) -> None:
        """The device's process."""
        log = os.open(self._log, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 2)
        os.close(log)
        faulthandler.enable()
        logging.basicConfig(level=logging.WARNING, force=True)
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        root = MountSpec("root", "tmpfs", "/", options=(("size", "4m"),))
        with Tree([root]) as tree:
            server = FuseServer(tree.vfs, tree.root)
            with VirtioFsDevice(server, "fuzzed", 2, poll_limit_ns=0) as device:
                signal.signal(signal.SIGTERM, lambda *_: device.stop())
                device.serve_path(self._path)

    def _stop(self) -> int:
        os.kill(self._child, signal.SIGTERM)
        end = time.monotonic() + _SETTLE_SECONDS
        while True:
            done, status = os.waitpid(self._child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                os.kill(self._child, signal.SIGKILL)
                os.waitpid(self._child, 0)
                return -signal.SIGKILL
            time.sleep(0.005)

    def run(self, choices: Choices, inputs: int) -> Outcome:
        """See ``Fuzzer``."""
        maker = ConversationMaker(choices, 2, self.offered)
        return self._run({}, maker.next, inputs, maker)

    def replay(self, case: Case) -> Outcome:
        """See ``Fuzzer``."""
        steps = iter(case.steps)
        return self._run(case.settings, lambda: next(steps), len(case.steps), None)

    def _run(
        self,
        settings: Mapping[str, Any],
        following: Callable[[], Step],
        count: int,
        maker: ConversationMaker | None,
    ) -> Outcome:
        steps: list[Step] = []
        answers: Counter[tuple[str, str]] = Counter()
        failure = ""
        props = _Props()
        try:
            for _ in range(count):
                step = following()
                steps.append(step)
                if not self._perform(step, props, answers) and maker is not None:
                    maker.restart()
            self._hang_up()
            found = self._after_a_good_frontend()
            if found != self._expected:
                raise Broken(f"the device's descriptors: {self._expected} became {found}")
            log = self._log.read_text(errors="replace")
            if "Traceback" in log:
                raise Broken(f"logged:\n{log[-4000:]}")
            self._log.write_bytes(b"")
        except Broken as error:
            failure = f"Broken: {error}"
        except Exception:
            failure = traceback.format_exc()
        finally:
            self._hang_up()
            props.close()
        if failure:
            status = self._stop()
            log = self._log.read_text(errors="replace")
            failure += f"\n(The device ended with {status}.)\n{log[-4000:]}".rstrip()
            self._start()
        inputs = sum(isinstance(step, Message) for step in steps)
        return Outcome(Case(self.target, settings, tuple(steps)), inputs, answers, failure)

    def _perform(self, step: Step, props: _Props, answers: Counter[tuple[str, str]]) -> bool:
        """Returns whether the device is still listening to us."""
        if isinstance(step, Scribble):
            props.scribble(step.place, step.data)
        elif isinstance(step, Deed):
            if step.name == "hang up":
                self._hang_up()
                return False
            if step.name == "ask":
                return self._ask()
            props.deed(step)
        elif isinstance(step, Message):
            return self._send(step, props, answers)
        return True

    def _send(self, step: Message, props: _Props, answers: Counter[tuple[str, str]]) -> bool:
        name = "noise"
        if len(step.data) >= wire.HEADER.size:
            request = wire.HEADER.unpack_from(step.data)[0]
            name = _NAMES.get(request, "unknown")
        fds = [props.descriptor(kind) for kind in step.fds]
        try:
            if self._sock is None:
                self._sock = _connect(self._path, self._child)
            ancillary = []
            if fds:
                numbers = array.array("i", [fd for fd, _ in fds])
                ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers))
            self._sock.sendmsg([step.data], ancillary, socket.MSG_NOSIGNAL)
            if wire.HEADER.size <= len(step.data) and step.number & 1:
                # Half of the time the device comes to an end before the next message is there.
                select.select([self._sock], [], [], 0.0005)
            alive = _drain(self._sock)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            alive = False
        finally:
            for fd, owned in fds:
                if owned:
                    os.close(fd)
        answers[name, "" if alive else "hangs up"] += 1
        if not alive:
            self._hang_up()
        return alive

    def _ask(self) -> bool:
        """Wait until the device has come to the end of what was sent: it answers in order."""
        sock = self._sock
        if sock is None:
            return False
        answered = b""
        try:
            sock.sendall(wire.HEADER.pack(wire.GET_FEATURES, wire.VERSION, 0))
            while len(answered) < wire.HEADER.size + wire.U64.size:
                if not select.select([sock], [], [], _SETTLE_SECONDS)[0]:
                    return False
                data = sock.recv(4096)
                if not data:
                    return False
                answered += data
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _hang_up(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def _after_a_good_frontend(self) -> int:
        """Serve a frontend that does everything right. Returns the device's open descriptors when
        it has gone. Raises: Broken.
        """
        _connect(self._path, self._child).close()
        try:
            with Frontend.connect(self._path, memory_size=MEMORY) as frontend:
                frontend.negotiate()
                frontend.share_memory()
                client = FuseClient(frontend, depth=2, timeout=_SETTLE_SECONDS)
                client.init()
                error, _ = client.request(_STATFS, 1, b"", 80)
                if error:
                    raise Broken(f"STATFS of a good frontend: {errno.errorcode[error]}")
        except (OSError, EOFError) as error:
            raise Broken(f"a good frontend is not served: {error!r}") from error
        return self._settled()

    def _settled(self) -> int:
        """How many descriptors the device has open once that no longer changes."""
        end = time.monotonic() + _SETTLE_SECONDS
        expected = getattr(self, "_expected", -1)
        last, since = -1, time.monotonic()
        while True:
            try:
                count = len(os.listdir(f"/proc/{self._child}/fd"))
            except (FileNotFoundError, PermissionError):
                raise Broken("the device is dead") from None
            now = time.monotonic()
            if count != last:
                last, since = count, now
            if count == expected or now - since > 0.5 or now > end:
                return count
            time.sleep(0.001)


class _Props:
    """What a frontend has besides its socket: memory, and descriptors of all kinds."""

    def __init__(self) -> None:
        self._memory = os.memfd_create("frontend", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._memory, MEMORY)
        self._kicks: dict[int, int] = {}

    def close(self) -> None:
        os.close(self._memory)
        for fd in self._kicks.values():
            os.close(fd)

    def scribble(self, place: int, data: bytes) -> None:
        if place + len(data) <= os.fstat(self._memory).st_size:
            os.pwrite(self._memory, data, place)

    def deed(self, step: Deed) -> None:
        number = int(step.args[0])
        if step.name == "kick":
            os.eventfd_write(self._kick(number), 1)
        elif step.name == "truncate":
            try:
                os.ftruncate(self._memory, number)
            except PermissionError:
                # The device maps it, and has sealed its size.
                pass
        else:
            raise ValueError(f"no deed {step.name}{step.args}")

    def _kick(self, index: int) -> int:
        if index not in self._kicks:
            self._kicks[index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self._kicks[index]

    def descriptor(self, kind: str) -> tuple[int, bool]:
        """One of that kind, and whether it is the caller's to close."""
        if kind == "memory":
            return self._memory, False
        if kind.startswith("kick"):
            return self._kick(int(kind[4:])), False
        if kind == "eventfd":
            return os.eventfd(0), True
        if kind in ("short", "sealed"):
            fd = os.memfd_create(kind, os.MFD_CLOEXEC)
            os.ftruncate(fd, 4096 if kind == "short" else MEMORY)
            return fd, True
        if kind == "pipe":
            fd, other = os.pipe()
            os.close(other)
            return fd, True
        if kind == "socket":
            one, other_end = socket.socketpair()
            other_end.close()
            return one.detach(), True
        return os.open("/" if kind == "directory" else "/dev/null", os.O_RDONLY), True


def _connect(path: str, process: int) -> socket.socket:
    """Raises: Broken if the device does not listen."""
    end = time.monotonic() + _SETTLE_SECONDS
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            if time.monotonic() > end or not os.path.exists(f"/proc/{process}/fd/0"):
                raise Broken("the device does not listen") from None
            time.sleep(0.002)
        else:
            sock.setblocking(False)
            return sock


def _drain(sock: socket.socket) -> bool:
    """Read what has been answered; False if the device has hung up."""
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(4096, socket.CMSG_SPACE(64))
        except BlockingIOError:
            return True
        for _, _, content in ancillary:
            for fd in array.array("i", content[: len(content) & ~3]):
                os.close(fd)
        if not data:
            return False
