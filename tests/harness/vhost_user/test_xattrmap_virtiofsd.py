"""Maps of extended attributes, beside what both virtiofsds make of the same maps."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.compose import Tree
from harness.guest.newer import Newer
from harness.mountspec import MountSpec
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import ROOT, FuseClient

VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR = 21, 22, 23, 24
NAMES = (
    b"user.a", b"user.virtiofs.a", b"user.virtiofs.trusted.a", b"trusted.a", b"security.a",
    b"user.virtiofs.user.a", b"trusted.b",
)  # fmt: skip
HOSTS = ("user.hosts", "trusted.hosts", "security.hosts", "user.virtiofs.user.hosts",
         "user.virtiofs.trusted.hosts")  # fmt: skip
MAPS = (
    ":map::user.virtiofs.:",
    ":map:trusted.:user.virtiofs.:",
    ":prefix:all::user.virtiofs.::bad:all:::",
    "/prefix/all/trusted./user.virtiofs./ /bad/server//trusted./ /bad/client/user.virtiofs.// "
    "/ok/all///",
    "/bad/all/security.a/security.h/ /ok/all///",
    "/unsupported/all/security.a/security.h/ /ok/all///",
    ":ok:client:user.:: :ok:client:security.:: :bad:client::: :ok:server::: ",
    ":prefix:client:trusted.:user.virtiofs.: :ok:all:::",
    ":prefix:server::user.virtiofs.: :ok:all:::",
)
Answers = dict[str, object]


def prepare(directory: Path) -> None:
    directory.mkdir()
    (directory / "file").touch()
    for name in HOSTS:
        os.setxattr(directory / "file", name, name.encode())


def number_of(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def by_virtiofsd(client: FuseClient) -> Answers:
    node = client.lookup(ROOT, b"file").nodeid

    def call(opcode: int, body: bytes, size: int) -> bytes:
        error, reply = client.request(opcode, node, body, size)
        if error:
            raise OSError(error, os.strerror(error))
        return reply

    answers: Answers = {}
    for name in NAMES:
        key = name.decode()
        body = struct.pack("<II", 1, 0) + name + b"\0x"
        answers[f"set {key}"] = number_of(lambda b=body: call(SETXATTR, b, 0) or None)
        get = struct.pack("<II", 1000, 0) + name + b"\0"
        answers[f"get {key}"] = number_of(lambda g=get: call(GETXATTR, g, 1000))
    listed = call(LISTXATTR, struct.pack("<II", 4000, 0), 4000).split(b"\0")[:-1]
    answers["list"] = sorted(listed)
    for name in NAMES:
        answers[f"remove {name.decode()}"] = number_of(
            lambda n=name: call(REMOVEXATTR, n + b"\0", 0) or None
        )
    return answers


def by_us(directory: Path, text: str) -> Answers:
    options = (("xattr", None), ("xattrmap", text))
    spec = MountSpec("", "passthrough", "/", str(directory), options=options)
    answers: Answers = {}
    with Tree([spec]) as tree:
        task = tree.task
        for name in NAMES:
            key = name.decode()
            answers[f"set {key}"] = number_of(lambda n=name: task.setxattr("file", n, b"x"))
            answers[f"get {key}"] = number_of(lambda n=name: task.getxattr("file", n))
        answers["list"] = sorted(task.listxattr("file"))
        for name in NAMES:
            answers[f"remove {name.decode()}"] = number_of(
                lambda n=name: task.removexattr("file", n)
            )
    return answers


@pytest.fixture(params=["C", "Rust"])
def program(request: pytest.FixtureRequest) -> str | Path:
    """A virtiofsd; what follows is said so that both understand."""
    if request.param == "Rust":
        newer: Newer = request.getfixturevalue("newer")
        return newer.virtiofsd
    if not os.access(VIRTIOFSD, os.X_OK):
        pytest.skip(f"{VIRTIOFSD} is missing (Debian: qemu-system-common)")
    return VIRTIOFSD


@pytest.mark.skipif(os.geteuid() != 0, reason="the C virtiofsd runs as root only")
@pytest.mark.parametrize("text", MAPS)
def test_a_map_means_what_it_means_to_virtiofsd(
    tmp_path: Path, text: str, program: str | Path
) -> None:
    theirs, ours, path = tmp_path / "theirs", tmp_path / "ours", tmp_path / "sock"
    prepare(theirs)
    prepare(ours)
    options = ["-o", f"source={theirs}", "-o", "xattr", "-o", f"xattrmap={text}"]
    options += ["-o", "modcaps=+sys_admin"]
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        daemon = subprocess.Popen([program, f"--socket-path={path}", *options], stderr=stderr)
    try:
        with Frontend.connect(path, memory_size=32 << 20) as frontend:
            frontend.negotiate(indirect=True, event_idx=True)
            frontend.share_memory()
            client = FuseClient(frontend, depth=1, timeout=60)
            client.init()
            expected = by_virtiofsd(client)
            client.close()
    except (FileNotFoundError, ConnectionRefusedError, EOFError):
        pytest.skip(f"virtiofsd does not run here: {log.read_text()[-300:]}")
    finally:
        daemon.kill()
        daemon.wait()
    assert by_us(ours, text) == expected
    assert sorted(os.listxattr(ours / "file")) == sorted(os.listxattr(theirs / "file"))
