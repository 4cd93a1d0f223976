"""Sources that change below a plan: zeros or what was, noticed, and no exception."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from fsimpl.ext2.builder import BuildOptions, HostSource, ImagePlan, build, write_image
from fsimpl.ext2.builder.files import HostFile

SIZE = 1_000_003
OLD = random.Random(1).randbytes(SIZE)


def shrink(path: Path) -> None:
    os.truncate(path, 5000)


def rewrite(path: Path) -> None:
    path.write_bytes(b"N" * SIZE)
    os.utime(path, ns=(5, 5))


def rewrite_longer(path: Path) -> None:
    path.write_bytes(b"N" * SIZE * 2)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"N" * SIZE)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink()


def become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def become_a_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def lose_its_directory(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


CHANGES = (
    shrink, rewrite, rewrite_longer, append, replace, remove, become_a_fifo, become_a_symlink,
    lose_its_directory,
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "dir").mkdir(parents=True)
    path = tmp_path / "tree" / "dir" / "file"
    path.write_bytes(OLD)
    return path


def content(plan: ImagePlan) -> bytes:
    """What the image has for the one file, by its pieces."""
    return b"".join(plan.read(piece.offset, piece.length) for piece in plan.pieces())


def plan_of(file: Path, appended: bool = False) -> ImagePlan:
    return build(HostSource(file.parent.parent, appended=appended), BuildOptions(mapping_min=4096))


@pytest.mark.parametrize("opened", [False, True], ids=["before it is read", "while it is open"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_reads_as_zeros_or_as_it_was(
    file: Path, change: Callable[[Path], None], opened: bool
) -> None:
    with plan_of(file) as plan:
        if opened:
            assert content(plan) == OLD
        change(file)
        after = content(plan)
        assert len(after) == SIZE
        # An open file stays what it is when its name goes; nothing else shows what is new.
        kept = opened and change not in (shrink, rewrite, rewrite_longer, append)
        assert after == (OLD if kept else bytes(SIZE))
        assert [name.name for name in plan.changed] == ([] if kept else [b"dir/file"])


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_of_a_changed_file_is_written_with_zeros(
    file: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    (file.parent / "neighbour").write_bytes(b"here")
    with plan_of(file) as plan:
        pieces = [piece for piece in plan.pieces() if piece.file.name == b"dir/file"]
        change(file)
        write_image(plan, str(tmp_path / "image"))
        written = (tmp_path / "image").read_bytes()
        for piece in pieces:
            assert not any(written[piece.offset : piece.offset + piece.length])
        assert b"dir/file" in [changed.name for changed in plan.changed]
        assert b"N" * 100 not in written
        if change is not lose_its_directory:
            assert b"here" in written


def test_a_file_that_only_grows_may_be_taken_as_it_was(file: Path, tmp_path: Path) -> None:
    with plan_of(file, appended=True) as plan:
        append(file)
        assert content(plan) == OLD
        assert not plan.changed
        shrink(file)
        assert content(plan) == bytes(SIZE)
        assert plan.changed


def test_permissions_and_names_may_change(file: Path) -> None:
    with plan_of(file) as plan:
        file.chmod(0o600)
        os.link(file, file.with_name("second"))
        assert content(plan) == OLD
        assert not plan.changed


def test_a_descriptor_for_mapping_is_refused_for_a_changed_file(file: Path) -> None:
    with plan_of(file) as plan:
        (piece,) = plan.mappings
        assert isinstance(piece.file, HostFile)
        os.close(piece.file.open())
        shrink(file)
        with pytest.raises(OSError, match="Stale"):
            piece.file.open()


def test_a_file_that_shrinks_while_it_is_copied_is_zeros(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.copy_file_range

    def racing(*arguments: int) -> int:
        shrink(file)
        return real(*arguments)

    monkeypatch.setattr(os, "copy_file_range", racing)
    with plan_of(file) as plan:
        (piece,) = plan.mappings
        write_image(plan, str(tmp_path / "image"))
        assert len(plan.changed) == 1
        written = (tmp_path / "image").read_bytes()
        assert not any(written[piece.offset : piece.offset + piece.length])


def test_no_image_is_left_when_the_disk_is_full(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"the old one")
    full = os.open("/dev/full", os.O_WRONLY)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(full, data, 0))
    with plan_of(file) as plan, pytest.raises(OSError, match="No space left"):
        write_image(plan, str(image))
    os.close(full)
    assert image.read_bytes() == b"the old one"
    assert sorted(os.listdir(tmp_path)) == ["image", "tree"]


@pytest.mark.parametrize("when", ["scan", "write"])
def test_whoever_follows_the_progress_can_give_up(file: Path, tmp_path: Path, when: str) -> None:
    def give_up(what: str, done: int, total: int) -> None:
        if what == when:
            raise KeyboardInterrupt

    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(KeyboardInterrupt),
        build(HostSource(file.parent.parent), progress=give_up) as plan,
    ):
        write_image(plan, str(tmp_path / "image"), give_up)
    assert os.listdir(tmp_path) == ["tree"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_descriptors_are_given_back(file: Path, tmp_path: Path) -> None:
    for number in range(200):
        (file.parent / str(number)).write_bytes(b"%d" % number)
    before = len(os.listdir("/proc/self/fd"))
    with plan_of(file) as plan:
        assert plan.read(0, plan.size)
        assert len(os.listdir("/proc/self/fd")) < before + 100
    assert len(os.listdir("/proc/self/fd")) == before
