"""Trees built from mount specs."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from harness.compose import Tree
from harness.errors import UsageError
from harness.mountspec import parse_mount_spec
from vfs import abi


def tree(*texts: str) -> Tree:
    return Tree([parse_mount_spec(text) for text in texts], tracing=True)


def test_nothing_asked_is_an_empty_tmpfs() -> None:
    with tree() as built:
        assert built.task.listdir("/") == []
        assert built.task.statfs("/").f_type == 0x01021994
        assert built.task.stat("/").st_mode & 0o7777 == 0o755


def test_mount_points_are_made_on_the_way() -> None:
    with tree("type=tmpfs,dst=/a/b/c,mode=700") as built:
        assert built.task.stat("/a/b").st_mode & 0o7777 == 0o755
        assert built.task.stat("/a/b/c").st_mode & 0o7777 == 0o700
        assert built.task.stat("/a/b").st_dev != built.task.stat("/a/b/c").st_dev


def test_mounts_are_made_in_order_so_a_later_one_can_lie_in_an_earlier_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "sub").mkdir()
    with tree(f"type=passthrough,src={tmp_path},dst=/host,ro", "type=tmpfs,dst=/host/sub") as built:
        built.task.mkdir("/host/sub/new")
    assert list((tmp_path / "sub").iterdir()) == []


def test_the_root_is_the_spec_at_slash_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with tree("type=tmpfs,dst=/scratch", f"type=passthrough,src={tmp_path},dst=/") as built:
        assert sorted(built.task.listdir("/")) == ["file", "scratch"]
    assert (tmp_path / "scratch").is_dir()


def test_a_read_only_tmpfs_can_hold_the_mount_points_of_others() -> None:
    with tree("type=tmpfs,dst=/,ro", "type=tmpfs,dst=/inner") as built:
        with pytest.raises(OSError) as caught:
            built.task.mkdir("/new")
        assert caught.value.errno == errno.EROFS
        built.task.mkdir("/inner/new")


def test_a_read_only_passthrough_is_not_changed_and_a_missing_mount_point_is_named(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=r"no directory /sub .* read-only"):
        tree(f"type=passthrough,src={tmp_path},dst=/,ro", "type=tmpfs,dst=/sub")
    assert list(tmp_path.iterdir()) == []


def test_flags_of_a_mount_are_set_and_those_of_a_bind_are_its_own() -> None:
    with tree(
        "type=tmpfs,dst=/,nosuid",
        "type=tmpfs,dst=/a,nodev,noexec",
        "type=bind,src=/a,dst=/b,ro,nosymfollow",
    ) as built:
        flags = [mount.flags for mount in built.task.namespace.mounts.values()][1:]
        wanted = abi.MS_NOSUID, abi.MS_NODEV | abi.MS_NOEXEC, abi.MS_RDONLY | abi.MS_NOSYMFOLLOW
        assert [have & ~abi.MS_RELATIME for have in flags] == list(wanted)
        built.task.mkdir("/a/new")
        assert built.task.listdir("/b") == ["new"]
        with pytest.raises(OSError) as caught:
            built.task.mkdir("/b/other")
        assert caught.value.errno == errno.EROFS


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (
            ["type=ext4,dst=/"],
            "no type 'ext4': there are bind, devtmpfs, ext2, passthrough, proc, tmpfs",
        ),
        (["type=tmpfs,dst=/,size=1m,colour=red"], "'colour'"),
        (["type=tmpfs,dst=/,size=big"], "size=big"),
        (["type=tmpfs,dst=/a,size=1m,sise=1m"], "'sise'"),
        (["type=passthrough,dst=/"], "needs src="),
        (["type=passthrough,src=/nonexistent,dst=/"], "/nonexistent: No such file or directory"),
        (["type=passthrough,src=/etc/passwd/x,dst=/a"], "Not a directory"),
        (["type=tmpfs,src=/srv,dst=/srv"], "type=passthrough"),
        (["type=bind,src=a,dst=/b"], "not absolute"),
        (["type=bind,src=/a,dst=/b"], "/a: No such file or directory"),
        (["type=bind,src=/a,dst=/"], "can't be a bind"),
        (["type=bind,src=/,dst=/b,size=1m"], "no option 'size'"),
        (["type=tmpfs,dst=/a", "type=tmpfs,dst=/a/"], "taken by another"),
        (['type=tmpfs,dst=/a,"mode=1,2"'], "comma"),
    ],
)
def test_what_can_not_be_mounted_is_told_in_one_line_that_names_the_spec(
    texts: list[str], named: str
) -> None:
    with pytest.raises(UsageError) as caught:
        tree(*texts)
    message = str(caught.value)
    assert named in message
    assert message.startswith(f"--mount {texts[-1]}: ")
    assert "\n" not in message


def test_an_image_can_be_the_root_and_hold_the_mount_points_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    image = tmp_path / "image"
    command = ["mke2fs", "-q", "-t", "ext2", "-d", str(tmp_path / "tree"), str(image), "1M"]
    subprocess.run(command, check=True, capture_output=True)
    with tree(f"type=ext2,src={image},dst=/,ro", "type=tmpfs,dst=/inner") as made:
        made.task.mkdir("/inner/new")
        with pytest.raises(OSError) as caught:
            made.task.mkdir("/new")
        assert caught.value.errno == errno.EROFS
    with pytest.raises(UsageError, match=r"no directory /missing .* read-only"):
        tree(f"type=ext2,src={image},dst=/", "type=tmpfs,dst=/missing")


def test_an_image_that_is_not_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    image = tmp_path / "image"
    command = ["mke2fs", "-q", "-t", "ext4", "-O", "encrypt", str(image), "8M"]
    subprocess.run(command, check=True, capture_output=True)
    for texts in ([f"type=ext2,src={image},dst=/"], ["type=ext2,dst=/x,src=" + str(image)]):
        with pytest.raises(UsageError, match=r"unsupported optional features: encrypt$"):
            tree(*texts)
