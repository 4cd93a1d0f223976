"""`dentry demo`, behind `make run`: what a guest that lives on a tree sees, in one minute."""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
import sys
import time
from functools import partial
from pathlib import Path
from typing import Final

from harness.cli.daemon import ForkedDaemon
from harness.cli.guest_tree import DEVTMPFS, busybox_tree, host_directory
from harness.cli.options import add_logging, configure_logging, terminable
from harness.compose import Tree
from harness.guest.errors import GuestUnavailable
from harness.guest.guest import Guest, GuestConfig
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient

_TEXT: Final = "written in the guest, kept in a Python process"
_LOOKS: Final = (
    "uname -sr",
    "ls -l /dev",
    f"echo {_TEXT} > /tmp/note",
    "cat /tmp/note",
    "ls -l /tmp/note",
)
_BLOCK: Final = 1 << 16


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="boot a guest and show what it sees",
        description="Boot the guest that `dentry guest` boots with nothing asked, let it look "
        "around, and count the FUSE requests. Without QEMU a driver in Python stands in for it.",
    )
    add_logging(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the tour; 0 if everything the guest saw was right."""
    configure_logging(arguments.log_level)
    sample = _sample()
    started = time.monotonic()
    with terminable():
        try:
            right = _in_guest(sample)
        except GuestUnavailable as error:
            instead = "In its place, the virtio driver in Python."
            print(f"No guest here: {error}.\n{instead}\n", flush=True)
            right = _in_python(sample)
    print(f"\n{time.monotonic() - started:.1f} s in all", flush=True)
    return 0 if right else 1


def _sample() -> Path:
    """Return a host file to compare: the largest module of this package."""
    package = Path(__file__).parent.parent
    return max(package.rglob("*.py"), key=lambda path: path.stat().st_size)


def _in_guest(sample: Path) -> bool:
    shared = sample.parent
    mounts = [host_directory(str(shared), "/host")]
    with ForkedDaemon(partial(busybox_tree, mounts)) as daemon:
        started = time.monotonic()
        with Guest(GuestConfig(filesystem=daemon.socket)) as guest:
            print(f"A Linux guest booted in {time.monotonic() - started:.1f} s.", flush=True)
            outputs = {command: _show(guest, command) for command in _LOOKS}
            seen = _show(guest, f"sha256sum /host/{sample.name}").split(" ")[0]
            # Last, because the guest's kernel mounts a mount of ours when it first walks into it.
            _show(guest, "mount")
        requests = daemon.finish()
    right = _compare(sample, seen) and outputs["cat /tmp/note"] == _TEXT + "\n"
    _print_requests(requests)
    return right


def _show(guest: Guest, command: str) -> str:
    print(f"\nguest# {command}", flush=True)
    result = guest.run(command)
    output = (result.stdout + result.stderr).decode(errors="replace")
    sys.stdout.write(output)
    if result.status:
        print(f"(exit status {result.status})")
    sys.stdout.flush()
    return output


def _in_python(sample: Path) -> bool:
    """The same look around, as requests of our own driver over the same wire."""
    mounts = [
        DEVTMPFS,
        host_directory(str(sample.parent), "/host"),
    ]
    with ForkedDaemon(partial(Tree, mounts)) as daemon:
        with Frontend(daemon.socket.dup()) as frontend:
            frontend.negotiate()
            frontend.share_memory()
            client = FuseClient(frontend, buffer_size=2 * _BLOCK)
            reply = client.init()
            print(f"FUSE {reply.major}.{reply.minor} over vhost-user")
            print("\nreaddirplus of /dev")
            _list_directory(client, client.lookup(1, b"dev").nodeid)
            entry, handle = client.create(1, b"note")
            client.write(entry.nodeid, handle, 0, _TEXT.encode())
            kept = client.read(entry.nodeid, handle, 0, _BLOCK)
            client.release(entry.nodeid, handle)
            print(f"\nwrite and read back on tmpfs: {kept.decode()}")
            seen = _checksum(client, sample.name.encode())
        requests = daemon.finish()
    right = _compare(sample, seen) and kept.decode() == _TEXT
    _print_requests(requests)
    return right


def _list_directory(client: FuseClient, nodeid: int) -> None:
    handle = client.opendir(nodeid)
    offset = 0
    while entries := client.readdirplus(nodeid, handle, offset, _BLOCK):
        for item in entries:
            attr = item.entry.attr
            if item.name in (b".", b".."):
                continue
            number = f"{os.major(attr.rdev)},{os.minor(attr.rdev):4}" if attr.rdev else ""
            print(f"{stat.filemode(attr.mode)} {number:>9} {os.fsdecode(item.name)}")
        offset = entries[-1].offset
    client.releasedir(nodeid, handle)


def _checksum(client: FuseClient, name: bytes) -> str:
    entry = client.lookup(client.lookup(1, b"host").nodeid, name)
    handle = client.open(entry.nodeid)
    digest = hashlib.sha256()
    offset = 0
    while data := client.read(entry.nodeid, handle, offset, _BLOCK):
        digest.update(data)
        offset += len(data)
    client.release(entry.nodeid, handle)
    return digest.hexdigest()


def _compare(sample: Path, seen: str) -> bool:
    expected = hashlib.sha256(sample.read_bytes()).hexdigest()
    same = seen == expected
    print(f"\nhost$ sha256sum {sample.name}\n{expected}  {sample}")
    print("the checksums are equal" if same else "THE CHECKSUMS DIFFER")
    return same


def _print_requests(requests: dict[str, int]) -> None:
    total = sum(requests.values())
    print(f"\nThe daemon served {total} FUSE requests:")
    by_count = sorted(requests.items(), key=lambda item: (-item[1], item[0]))
    width = max((len(name) for name, _ in by_count), default=0)
    for start in range(0, len(by_count), 4):
        row = by_count[start : start + 4]
        print("  " + "   ".join(f"{name:<{width}} {count:>5}" for name, count in row).rstrip())
