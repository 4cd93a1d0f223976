"""Mount options: each one as the running kernel takes it, or refuses it, and shows it again."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from tmpfs_ours import Ours

from fsimpl.tmpfs import TmpfsSuperblock, TmpfsType
from fsimpl.tmpfs.options import memparse
from vfs import abi
from vfs.credentials import Credentials
from vfs.fs_context import REMOUNT_FLAGS, FilesystemContext
from vfs.virtual_filesystem import VirtualFilesystem

OPTIONS = [
    "", "size=1m", "size=1M", "size=1k", "size=5000", "size=0", "size=", "size", "size=-1",
    "size=1mm", "size=1x", "size=10%", "size=10%%", "size=0x10k", "size=010k", "size=08",
    "size=0x", "size=1T", "size=1p", "size=1e", "size=16e", "size=18446744073709551615",
    "size=18446744073709551616", "size= 1m", "size=1m ", "size=100%", "size=200%", "size=1k%",
    "nr_blocks=10", "nr_blocks=1k", "nr_blocks=10%", "nr_blocks=0", "nr_blocks=4e",
    "nr_blocks=9223372036854775807", "nr_blocks=9223372036854775808", "nr_inodes=5",
    "nr_inodes=0", "nr_inodes=1", "nr_inodes=1k", "nr_inodes=", "nr_inodes=10%",
    "nr_inodes=18014398509481983", "nr_inodes=18014398509481984", "mode=755", "mode=0755",
    "mode=17777", "mode=777777", "mode=8", "mode=", "mode", "mode=0x1", "mode=+7", "mode=1777",
    "mode=0", "mode=40000000000", "uid=5", "uid=05", "uid=0x10", "uid=-1", "uid=4294967295",
    "uid=4294967294", "uid=4294967296", "uid=", "uid", "uid=+5", "uid=5\n", "uid=5 ", "uid=09",
    "uid=00000000000000000000000000005", "uid=18446744073709551621",
    "uid=++5", "uid=\n", "mode=7\n", "mode=+", "uid=+",
    "gid=7", "gid=root", "uid=5,gid=6,mode=700,size=4k,nr_inodes=9,inode64", "inode64", "inode32",
    "inode64=1", "huge=always", "huge=never", "huge=within_size", "huge=advise", "huge=deny",
    "huge=force", "huge=x", "huge=", "huge", "noswap", "noswap=1", "foo", "foo=1", "size=1m,",
    "size=1m,,uid=1", "size=1m,size=2m", "size=1m,nr_blocks=3", "nr_blocks=3,size=1m", "SIZE=1m",
    "size==5", "uid=5,7", "source", "size=1g,huge=always,noswap", "size=٣",
]  # fmt: skip

REMOUNTS = [
    "size=40k", "size=20k", "size=80k", "size=16k", "size=12k", "nr_inodes=2", "nr_inodes=3",
    "nr_inodes=100", "mode=700", "uid=5", "foo", "huge=always", "", "inode64", "inode32",
    "noswap", "size=0", "size=10k", "nr_inodes=0", "nr_inodes=50", "nr_blocks=20", "huge=never",
]  # fmt: skip

# Mounts in a mount namespace of its own, so that nothing of it is left or seen.
PROBE = """
import ctypes, errno, json, os, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
def mount(target, options, flags=0):
    data = options.encode()
    if libc.mount(b"none", target.encode(), b"tmpfs", ctypes.c_ulong(flags), data):
        return ctypes.get_errno()
    return 0
if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, ctypes.c_ulong(0x44000), None):
    sys.exit(77)
directory = tempfile.mkdtemp()
def state():
    for line in open("/proc/self/mountinfo"):
        fields = line.split()
        if fields[4] == directory:
            shown = fields[-1]
    s, t = os.statvfs(directory), os.stat(directory)
    return [shown.removeprefix("rw"), [s.f_blocks, s.f_bfree, s.f_files, s.f_ffree],
            [t.st_mode, t.st_uid, t.st_gid]]
def messages(option):
    fd = libc.syscall(430, b"tmpfs", 0)
    key, equals, value = option.encode().partition(b"=")
    passed = (fd, 1, key, value, 0) if equals else (fd, 0, key, None, 0)
    found = ["0" if libc.syscall(431, *passed) == 0 else errno.errorcode[ctypes.get_errno()]]
    while True:
        try:
            found.append(os.read(fd, 1000).decode())
        except OSError:
            os.close(fd)
            return found
try:
    options, remounts = json.load(sys.stdin)
    answers = []
    for option in options:
        number = mount(directory, option)
        answers.append([number, None if number else state()])
        if not number:
            assert libc.umount2(directory.encode(), 0) == 0
    assert mount(directory, "size=40k,nr_inodes=20") == 0
    with open(directory + "/f", "wb") as file:
        file.write(bytes(16384))
    for option in remounts:
        answers.append([mount(directory, option, 32), state()])
    libc.umount2(directory.encode(), 2)
    for option in options:
        answers.append(messages(option))
finally:
    os.rmdir(directory)
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def kernel_answers() -> list[list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps([OPTIONS, REMOUNTS]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    if done.returncode == 77:
        pytest.skip("mounting needs root")
    assert not done.stderr
    answers: list[list[object]] = json.loads(done.stdout)
    return answers


def state(superblock: TmpfsSuperblock) -> list[object]:
    figures = superblock.statfs()
    root = superblock.root
    assert root is not None and root.inode is not None
    inode = root.inode
    return [
        superblock.show_options(),
        [figures.blocks, figures.bfree, figures.files, figures.ffree],
        [inode.mode, inode.uid, inode.gid],
    ]


def mount(vfs: VirtualFilesystem, options: str) -> TmpfsSuperblock:
    fstype = TmpfsType()
    with FilesystemContext(vfs, fstype, Credentials.root()) as context:
        context.parse_monolithic(options)
        superblock = context.get_tree()
    assert isinstance(superblock, TmpfsSuperblock)
    return superblock


def test_each_option_is_taken_refused_and_shown_as_by_the_kernel(
    kernel_answers: list[list[object]],
) -> None:
    vfs = VirtualFilesystem()
    for options, expected in zip(OPTIONS, kernel_answers, strict=False):
        try:
            with mount(vfs, options) as superblock:
                answer = [0, state(superblock)]
        except OSError as error:
            answer = [error.errno, None]
        assert answer == expected, options
    vfs.shutdown()


def test_each_remount_is_taken_or_refused_as_by_the_kernel(
    kernel_answers: list[list[object]], make_ours: Callable
) -> None:
    ours = make_ours("size=40k,nr_inodes=20", ram_pages=os.sysconf("SC_PHYS_PAGES"))
    fd = ours.open("/f", os.O_RDWR | os.O_CREAT)
    ours.task.write(fd, bytes(16384))
    ours.task.close(fd)
    answers = kernel_answers[len(OPTIONS) : len(OPTIONS) + len(REMOUNTS)]
    for options, expected in zip(REMOUNTS, answers, strict=True):
        number = 0
        try:
            with FilesystemContext.for_reconfigure(
                ours.superblock, Credentials.root(), 0, REMOUNT_FLAGS
            ) as context:
                context.parse_monolithic(options)
                context.reconfigure()
        except OSError as error:
            number = error.errno or -1
        assert [number, state(ours.superblock)] == expected, options


def test_fsconfig_takes_or_refuses_each_option_in_the_words_of_the_kernel(
    kernel_answers: list[list[object]], ours: Ours
) -> None:
    for option, expected in zip(OPTIONS, kernel_answers[-len(OPTIONS) :], strict=True):
        fd = ours.task.fsopen("tmpfs")
        key, equals, value = option.partition("=")
        command = abi.FSCONFIG_SET_STRING if equals else abi.FSCONFIG_SET_FLAG
        found = ["0"]
        try:
            ours.task.fsconfig(fd, command, key, value if equals else None)
        except OSError as error:
            found = [errno.errorcode[error.errno or 0]]
        with contextlib.suppress(OSError):
            while True:
                found.append(ours.task.read(fd, 1000).decode())
        ours.task.close(fd)
        assert found == expected, option


def test_root_belongs_to_the_one_who_mounts() -> None:
    vfs = VirtualFilesystem()
    fstype = TmpfsType()
    with (
        FilesystemContext(vfs, fstype, Credentials(1000, 1001)) as context,
        context.get_tree() as superblock,
    ):
        assert superblock.root is not None and superblock.root.inode is not None
        assert (superblock.root.inode.uid, superblock.root.inode.gid) == (1000, 1001)
        assert superblock.show_options() == ",uid=1000,gid=1001"
    vfs.shutdown()


def test_refused_mount_leaves_nothing_behind() -> None:
    vfs = VirtualFilesystem()
    with pytest.raises(OSError):
        mount(vfs, "size=oops")
    assert vfs.superblocks == []
    vfs.shutdown()


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        ("4k", 4096, ""),
        ("4kk", 4096, "k"),
        ("0x1fG", 31 << 30, ""),
        ("1E", 1 << 60, ""),
        ("", 0, ""),
    ],
)
def test_memparse_reads_a_number_and_one_suffix(text: str, value: int, rest: str) -> None:
    assert memparse(text) == (value, rest)
