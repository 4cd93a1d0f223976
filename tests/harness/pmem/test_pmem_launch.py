"""Images that jailed processes build: what they hand over, and what they may do."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
from pmem_support import (
    OPTIONS,
    Region,
    builder_of,
    closing,
    make_tree,
    plain_image,
    status,
    until,
)

from fsimpl.ext2.builder import BuildOptions, ImageError
from harness import linux
from harness.fuse.host_mount import HostMountError
from harness.pmem import DESCRIPTORS_MAX, Mapping, PmemImage, launch, wire
from harness.pmem.jail import POLICY
from harness.sandbox import SandboxError
from harness.sandbox.sandbox import preload
from harness.sandbox.seccomp import install

WAIT = 60.0
USER = 1000
AS_FILE = (False, pytest.param(True, marks=pytest.mark.fuse))


def mapped(image: PmemImage) -> bytes:
    with closing(image.descriptors(range(image.files))) as fds:
        return Region(image.metadata, image.size, image.mappings, fds).read()


def test_metadata_with_the_files_mapped_over_it_is_the_image(source: Path) -> None:
    with launch(source, OPTIONS) as image:
        image.wait(WAIT)
        assert image.mappings
        assert all(not value % mmap.PAGESIZE for row in image.mappings for value in row[:3])
        assert mapped(image) == plain_image(source)


def test_a_monitor_that_is_given_the_socket_needs_nothing_else(source: Path) -> None:
    with launch(source, OPTIONS) as image:
        with image.detach() as sock:
            kind = 0
            while kind != wire.READY:
                data, fds = wire.receive(sock)
                (kind,) = wire.KIND.unpack_from(data)
            _, _, size, identity, count, files = wire.READY_RECORD.unpack(data)
            assert identity == OPTIONS.uuid.bytes
            with closing(fds):
                table = os.pread(fds[1], count * wire.MAPPING.size, 0)
                sock.send(b"".join(map(wire.KIND.pack, (wire.OPEN, *range(files), files))))
                answer, opened = wire.receive(sock)
                words = memoryview(answer).cast("I").tolist()
                assert words == [wire.OPENED, *[0] * files, errno.EBADF]
                with closing(opened):
                    rows = [Mapping(*row) for row in wire.MAPPING.iter_unpack(table)]
                    assert Region(fds[0], size, rows, opened).read() == plain_image(source)
        pid = image.pid
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_more_files_than_one_message_holds_come_in_several(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "many", files=3 * DESCRIPTORS_MAX)
    with launch(source, OPTIONS) as image:
        image.wait(WAIT)
        assert image.files > DESCRIPTORS_MAX
        assert mapped(image) == plain_image(source)


def test_what_is_handed_over_is_sealed(source: Path) -> None:
    with launch(source, OPTIONS) as image:
        image.wait(WAIT)
        seals = fcntl.fcntl(image.metadata, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_WRITE
        assert seals & fcntl.F_SEAL_SHRINK
        with pytest.raises(PermissionError):
            os.pwrite(image.metadata, b"x", 0)


@pytest.mark.fuse
def test_the_image_as_a_file_is_the_same_up_to_a_whole_device(source: Path) -> None:
    wanted = plain_image(source)
    with launch(source, OPTIONS, as_file=True) as image:
        fd, size = image.open()
        with closing([fd]), mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            assert size == os.fstat(fd).st_size == -(-len(wanted) // (2 << 20)) * (2 << 20)
            assert memory[:] == wanted + bytes(size - len(wanted))


@pytest.mark.fuse
def test_a_file_of_a_known_size_is_there_before_the_image_is(source: Path) -> None:
    options = BuildOptions(uuid=OPTIONS.uuid, size=16 << 20)
    with launch(source, options, as_file=True) as image:
        fd, size = image.open(at_once=True)
        with closing([fd]):
            assert size == 16 << 20
            assert os.pread(fd, 2, 1024 + 56) == b"\x53\xef"


def test_progress_is_told_and_the_socket_is_what_to_wait_for(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "many", files=1200)
    told: list[tuple[str, int, int]] = []
    with launch(source, progress=lambda *what: told.append(what)) as image:
        assert image.fileno() >= 0
        until(image.poll, "no image")
    assert ("scan", 500, 0) in told
    assert told[-1][0] == "copy"
    assert told[-1][1] == told[-1][2] > 0


def test_the_builder_is_in_a_jail(source: Path) -> None:
    with launch(source) as image:
        builder = builder_of(image.pid)
        for namespace in ("mnt", "pid", "net", "user"):
            ours = os.readlink(f"/proc/self/ns/{namespace}")
            assert os.readlink(f"/proc/{builder}/ns/{namespace}") != ours
        assert set(os.listdir(f"/proc/{builder}/root")) == set(os.listdir(source))
        assert int(status(builder, "CapEff"), 16) == 1 << 2 | 1 << 3  # DAC_READ_SEARCH, FOWNER
        assert status(builder, "NoNewPrivs") == "1"


@pytest.mark.parametrize(
    ("flags", "is_killed"),
    (
        (os.O_RDONLY | os.O_NOFOLLOW, False),
        (os.O_PATH, False),
        (os.O_WRONLY, True),
        (os.O_RDWR, True),
        (os.O_RDONLY | os.O_TRUNC, True),
        (os.O_RDONLY | os.O_CREAT, True),
    ),
)
def test_the_builder_opens_nothing_to_write(source: Path, flags: int, is_killed: bool) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            install(POLICY, "kill")
            os.open(source / "big", flags)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] & 0x7F == (signal.SIGSYS if is_killed else 0)
    assert (source / "big").stat().st_size > 1 << 20


def test_a_tree_that_does_not_fit_is_told_in_one_line(source: Path) -> None:
    with launch(source, BuildOptions(size=65536)) as image:
        with pytest.raises(ImageError, match="the image needs"):
            image.wait(WAIT)
        with pytest.raises(ImageError):
            image.poll()


@pytest.mark.fuse
def test_the_file_of_an_image_that_failed_is_zeros(source: Path) -> None:
    with launch(source, BuildOptions(size=65536), as_file=True) as image:
        fd, size = image.open(at_once=True)
        with closing([fd]), mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            assert memory[:] == bytes(size)
        with pytest.raises(ImageError):
            image.wait(WAIT)


def test_a_source_that_is_no_directory_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        launch(tmp_path / "nosuch")
    with pytest.raises(NotADirectoryError):
        launch(tmp_path / "file")


@pytest.mark.fuse
def test_what_changed_is_zeros_in_a_mapped_file_and_no_signal(source: Path) -> None:
    marker = b"\x03" * 4096
    assert marker in plain_image(source)
    with launch(source, OPTIONS, as_file=True) as image:
        fd, size = image.open()
        with closing([fd]), mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
            os.truncate(source / "file2", 10)
            (source / "file4").unlink()
            (source / "file4").write_bytes(b"another")
            (source / "big").write_bytes(b"n" * 300_000)
            data = memory[:]
    assert marker not in data
    assert b"another" not in data
    assert b"nnnn" not in data
    assert b"\x02" * 4096 in data


@pytest.mark.fuse
def test_a_source_that_vanishes_has_no_descriptors_and_reads_as_zeros(source: Path) -> None:
    with launch(source, OPTIONS) as image, launch(source, OPTIONS, as_file=True) as served:
        image.wait(WAIT)
        fd, size = served.open()
        with closing([fd]):
            shutil.rmtree(source)
            assert set(image.descriptors(range(image.files))) == {None}
            assert b"\x03" * 4096 not in os.pread(fd, size, 0)


def test_a_symlink_in_the_source_leads_nowhere_outside(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 8192)
    with launch(source, OPTIONS) as image:
        image.wait(WAIT)
        (source / "file2").unlink()
        (source / "file2").symlink_to(secret)
        os.utime(source / "file2", ns=(0, 0), follow_symlinks=False)
        with closing(image.descriptors(range(image.files))) as fds:
            assert None in fds
            assert all(os.pread(fd, 1, 0) != b"s" for fd in fds if fd is not None)


def test_a_message_that_the_builder_does_not_know_ends_it(source: Path) -> None:
    with launch(source, OPTIONS) as image, image.detach() as sock:
        kind = 0
        while kind != wire.READY:
            data, fds = wire.receive(sock)
            (kind,) = wire.KIND.unpack_from(data)
        for fd in fds:
            os.close(fd)
        sock.send(b"what?")
        sock.settimeout(WAIT)
        assert sock.recv(1) == b""


@pytest.mark.parametrize("as_file", AS_FILE)
def test_a_user_has_images_of_what_is_his(as_file: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        source = make_tree(Path(place) / "source")
        for path in (source, source / "directory"):
            os.chown(path, USER, USER)
        preload()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setgroups([])
                os.setresgid(USER, USER, USER)
                os.setresuid(USER, USER, USER)
                # As a process that was started as that user is.
                linux.prctl(linux.PR_SET_DUMPABLE, 1)
                code = 0 if _begins_as_ext2(source, as_file) else 2
            except (SandboxError, HostMountError) as error:
                print(error)
                code = 3
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 3:
            pytest.skip("this host gives users no namespaces, or no mounts over /dev/fuse")
        assert code == 0


def _begins_as_ext2(source: Path, as_file: bool) -> bool:
    with launch(source, OPTIONS, as_file=as_file) as image:
        image.wait(WAIT)
        data = os.pread(image.open()[0], 2048, 0) if as_file else mapped(image)
        return data[1080:1082] == b"\x53\xef"
