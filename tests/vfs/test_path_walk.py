"""From a path to a file: symlinks, "..", slashes, lengths, descriptors, openat2's restrictions."""

from __future__ import annotations

import errno

import pytest
from vfs_support import contents, exists, fails_with, make_file

from harness.testbed.target import TargetTask
from vfs import abi
from vfs.abi import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, O_RDONLY


def chain_of_links(task: TargetTask, length: int) -> str:
    make_file(task, "end", b"reached")
    for number in range(length):
        task.symlink("end" if number == 0 else f"l{number - 1}", f"l{number}")
    return f"l{length - 1}"


def test_forty_symlinks_in_a_row_are_followed(root: TargetTask) -> None:
    assert contents(root, chain_of_links(root, 40)) == b"reached"


def test_the_forty_first_symlink_is_eloop(root: TargetTask) -> None:
    fails_with(errno.ELOOP, root.open, chain_of_links(root, 41), O_RDONLY, 0)


def test_symlinks_in_the_middle_count_to_the_same_forty(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.symlink(".", "d/here")
    root.stat("d" + "/here" * 40)
    fails_with(errno.ELOOP, root.stat, "d" + "/here" * 41)


def test_a_symlink_to_itself_is_eloop(root: TargetTask) -> None:
    root.symlink("me", "me")
    fails_with(errno.ELOOP, root.stat, "me")
    assert root.readlink("me") == b"me"


def test_an_absolute_symlink_starts_at_the_root_of_the_task(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    make_file(root, "jail/f", b"inside")
    make_file(root, "f", b"outside")
    root.symlink("/f", "jail/link")
    assert contents(root, "jail/link") == b"outside"
    root.chroot("jail")
    root.chdir("/")
    assert contents(root, "link") == b"inside"


def test_dotdot_at_the_root_stays_at_the_root(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    assert root.stat("/../../a/../..").st_ino == root.stat("/").st_ino


def test_dotdot_does_not_leave_a_chroot(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    make_file(root, "outside")
    root.chroot("jail")
    root.chdir("/")
    fails_with(errno.ENOENT, root.stat, "../outside")
    fails_with(errno.ENOENT, root.stat, "/../outside")


def test_a_cwd_outside_of_the_chroot_lets_dotdot_out(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    make_file(root, "outside", b"free")
    root.chroot("jail")
    assert contents(root, "../outside") == b"free"


def test_dotdot_after_a_symlink_is_the_targets_parent(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    root.mkdir("a/b", 0o755)
    make_file(root, "a/f", b"of a")
    root.symlink("a/b", "link")
    assert contents(root, "link/../f") == b"of a"


def test_every_component_before_the_last_must_be_a_directory(root: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.ENOTDIR, root.stat, "f/x")
    fails_with(errno.ENOTDIR, root.stat, "f/.")
    fails_with(errno.ENOTDIR, root.stat, "f/..")


def test_an_empty_path_is_enoent(root: TargetTask) -> None:
    fails_with(errno.ENOENT, root.stat, "")
    fails_with(errno.ENOENT, root.mkdir, "", 0o755)
    fails_with(errno.ENOENT, root.newfstatat, AT_FDCWD, "", 0)


def test_repeated_slashes_count_once(root: TargetTask) -> None:
    root.mkdir("a", 0o755)
    make_file(root, "a/f", b"x")
    assert contents(root, "//a///f") == b"x"


# Trailing slashes


def test_a_slash_after_a_file_is_enotdir(root: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.ENOTDIR, root.stat, "f/")
    fails_with(errno.ENOTDIR, root.unlink, "f/")
    fails_with(errno.ENOTDIR, root.open, "f/", O_RDONLY, 0)


def test_a_slash_after_a_symlink_follows_it(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.symlink("d", "link")
    assert root.lstat("link/").st_ino == root.stat("d").st_ino
    fails_with(errno.EINVAL, root.readlink, "link/")


def test_mkdir_takes_a_trailing_slash(root: TargetTask) -> None:
    root.mkdir("new//", 0o755)
    assert exists(root, "new")


def test_creating_a_file_with_a_trailing_slash_is_eisdir(root: TargetTask) -> None:
    fails_with(errno.EISDIR, root.open, "new/", abi.O_CREAT | abi.O_WRONLY, 0o644)
    assert not exists(root, "new")


def test_mknod_symlink_and_link_with_a_trailing_slash_are_enoent(root: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.ENOENT, root.mknod, "new/", abi.S_IFIFO | 0o644, 0)
    fails_with(errno.ENOENT, root.symlink, "f", "new/")
    fails_with(errno.ENOENT, root.link, "f", "new/")


def test_unlink_of_a_directory_with_a_trailing_slash_is_eisdir(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.EISDIR, root.unlink, "d/")


def test_rename_of_a_file_onto_a_name_with_a_slash_is_enotdir(root: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.ENOTDIR, root.rename, "f", "g/")
    fails_with(errno.ENOTDIR, root.rename, "f/", "g")


def test_rename_of_a_directory_takes_trailing_slashes(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.rename("d/", "e/")
    assert exists(root, "e")


# "." and ".." as last components


def test_removing_dot_and_dotdot_is_refused_each_in_its_way(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    fails_with(errno.EINVAL, root.rmdir, "d/.")
    fails_with(errno.ENOTEMPTY, root.rmdir, "d/..")
    fails_with(errno.EBUSY, root.rmdir, "/")
    fails_with(errno.EISDIR, root.unlink, "d/.")
    fails_with(errno.EBUSY, root.rename, "d/.", "x")
    fails_with(errno.EBUSY, root.rename, "d", "d/..")


def test_making_dot_or_the_root_is_eexist(root: TargetTask) -> None:
    fails_with(errno.EEXIST, root.mkdir, ".", 0o755)
    fails_with(errno.EEXIST, root.mkdir, "/", 0o755)
    fails_with(errno.EEXIST, root.symlink, "x", "..")


# Lengths


def test_a_name_of_255_bytes_is_fine_and_256_is_enametoolong(root: TargetTask) -> None:
    root.mkdir("n" * 255, 0o755)
    fails_with(errno.ENAMETOOLONG, root.mkdir, "n" * 256, 0o755)
    fails_with(errno.ENAMETOOLONG, root.stat, "n" * 256)


def test_name_length_is_counted_in_bytes(root: TargetTask) -> None:
    root.mkdir("ä" * 127, 0o755)
    fails_with(errno.ENAMETOOLONG, root.mkdir, "ä" * 128, 0o755)


def test_a_path_of_4095_bytes_is_fine_and_4096_is_enametoolong(root: TargetTask) -> None:
    root.stat("/" * 4095)
    fails_with(errno.ENAMETOOLONG, root.stat, "/" * 4096)


def test_path_length_is_checked_before_the_descriptor(root: TargetTask) -> None:
    fails_with(errno.ENAMETOOLONG, root.newfstatat, 77, "x" * 4096, 0)
    fails_with(errno.ENOENT, root.newfstatat, 77, "", 0)
    fails_with(errno.EBADF, root.newfstatat, 77, "x", 0)


def test_an_absolute_path_does_not_look_at_the_descriptor(root: TargetTask) -> None:
    root.newfstatat(77, "/", 0)


def test_a_symlink_target_of_4095_bytes_is_fine_and_4096_is_not(root: TargetTask) -> None:
    root.symlink("x" * 4095, "long")
    assert root.lstat("long").st_size == 4095
    fails_with(errno.ENAMETOOLONG, root.symlink, "x" * 4096, "longer")
    fails_with(errno.ENOENT, root.symlink, "", "empty")


def test_names_are_bytes(root: TargetTask) -> None:
    root.mkdir(b"\xff\xfe", 0o755)
    assert root.stat(b"\xff\xfe").st_nlink == 2


# Descriptors as starting points


@pytest.mark.usefixtures("every_id")
def test_at_empty_path_means_the_descriptor(root: TargetTask) -> None:
    make_file(root, "f", b"abc")
    fd = root.open("f", O_RDONLY, 0)
    assert root.newfstatat(fd, "", AT_EMPTY_PATH).st_size == 3
    root.fchownat(fd, "", 5, 6, AT_EMPTY_PATH)
    assert (root.stat("f").st_uid, root.stat("f").st_gid) == (5, 6)


def test_at_empty_path_with_at_fdcwd_means_the_cwd(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.chdir("d")
    assert root.newfstatat(AT_FDCWD, "", AT_EMPTY_PATH).st_ino == root.stat("/d").st_ino


def test_a_walk_from_a_file_descriptor_of_a_file_is_enotdir(root: TargetTask) -> None:
    make_file(root, "f")
    fd = root.open("f", O_RDONLY, 0)
    fails_with(errno.ENOTDIR, root.newfstatat, fd, "x", 0)


def test_unknown_at_flags_are_einval(root: TargetTask) -> None:
    for call, args in (
        (root.newfstatat, (AT_FDCWD, "/", 0x8000)),
        (root.unlinkat, (AT_FDCWD, "x", 0x8000)),
        (root.fchownat, (AT_FDCWD, "/", 0, 0, 0x8000)),
        (root.fchmodat2, (AT_FDCWD, "/", 0o755, 0x8000)),
        (root.faccessat2, (AT_FDCWD, "/", 0, 0x8000)),
        (root.utimensat, (AT_FDCWD, "/", None, 0x8000)),
    ):
        fails_with(errno.EINVAL, call, *args)


def test_o_path_opens_what_may_not_be_read_and_only_points(
    root: TargetTask, alice: TargetTask
) -> None:
    make_file(root, "secret", b"x", 0o600)
    fd = alice.open("secret", abi.O_PATH, 0)
    assert alice.fstat(fd).st_size == 1
    fails_with(errno.EBADF, alice.read, fd, 1)
    fails_with(errno.EBADF, alice.fchmod, fd, 0o777)
    fails_with(errno.EBADF, alice.lseek, fd, 0, abi.SEEK_SET)
    fails_with(errno.EBADF, alice.fsync, fd)
    alice.dup(fd)


def test_o_path_with_o_nofollow_opens_the_symlink_itself(root: TargetTask) -> None:
    root.symlink("nowhere", "link")
    fd = root.open("link", abi.O_PATH | abi.O_NOFOLLOW, 0)
    assert root.readlinkat(fd, "") == b"nowhere"
    assert root.fcntl(fd, abi.F_GETFL, 0) == abi.O_PATH | abi.O_NOFOLLOW


def test_o_path_directories_serve_as_starting_points_and_for_fchdir(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "d/f", b"x")
    fd = root.open("d", abi.O_PATH, 0)
    assert root.newfstatat(fd, "f", 0).st_size == 1
    root.fchdir(fd)
    assert root.getcwd() == b"/d"


def test_o_nofollow_on_a_symlink_is_eloop(root: TargetTask) -> None:
    make_file(root, "f")
    root.symlink("f", "link")
    fails_with(errno.ELOOP, root.open, "link", abi.O_RDONLY | abi.O_NOFOLLOW, 0)
    create = abi.O_CREAT | abi.O_WRONLY | abi.O_NOFOLLOW
    fails_with(errno.ELOOP, root.open, "link", create, 0o644)


def test_o_nofollow_concerns_the_last_component_only(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    make_file(root, "d/f")
    root.symlink("d", "link")
    root.open("link/f", abi.O_RDONLY | abi.O_NOFOLLOW, 0)


def test_o_directory_on_a_file_is_enotdir_and_with_o_creat_einval(root: TargetTask) -> None:
    make_file(root, "f")
    fails_with(errno.ENOTDIR, root.open, "f", abi.O_DIRECTORY, 0)
    fails_with(errno.EINVAL, root.open, "d", abi.O_DIRECTORY | abi.O_CREAT, 0o755)
    root.symlink("f", "link")
    fails_with(errno.ENOTDIR, root.open, "link", abi.O_DIRECTORY | abi.O_NOFOLLOW, 0)


def test_o_creat_follows_a_dangling_symlink_and_o_excl_does_not(root: TargetTask) -> None:
    root.symlink("made", "link")
    fails_with(errno.EEXIST, root.open, "link", abi.O_CREAT | abi.O_EXCL | abi.O_WRONLY, 0o644)
    assert not exists(root, "made")
    root.open("link", abi.O_CREAT | abi.O_WRONLY, 0o644)
    assert exists(root, "made")


# openat2(2)


@pytest.fixture
def tree(root: TargetTask) -> int:
    """A descriptor of ``box``, which has files, links that stay inside and links that leave."""
    root.mkdir("box", 0o755)
    root.mkdir("box/d", 0o755)
    make_file(root, "outside", b"outside")
    make_file(root, "box/f", b"inside")
    root.symlink("f", "box/relative")
    root.symlink("/f", "box/absolute")
    root.symlink("../outside", "box/escape")
    fd = root.open("box", abi.O_PATH, 0)
    assert isinstance(fd, int)
    return fd


def open_in(task: TargetTask, fd: int, path: str, resolve: int) -> bytes:
    opened = task.openat2(fd, path, O_RDONLY, 0, resolve)
    data = task.read(opened, 100)
    task.close(opened)
    assert isinstance(data, bytes)
    return data


def test_resolve_beneath_refuses_every_way_out_with_exdev(root: TargetTask, tree: int) -> None:
    beneath = abi.RESOLVE_BENEATH
    assert open_in(root, tree, "d/../relative", beneath) == b"inside"
    for path in ("..", "d/../../outside", "/f", "absolute", "escape"):
        fails_with(errno.EXDEV, root.openat2, tree, path, O_RDONLY, 0, beneath)


def test_resolve_in_root_takes_the_descriptor_for_the_root(root: TargetTask, tree: int) -> None:
    in_root = abi.RESOLVE_IN_ROOT
    for path in ("f", "/f", "absolute", "../../f", "d/../../f"):
        assert open_in(root, tree, path, in_root) == b"inside"
    fails_with(errno.ENOENT, root.openat2, tree, "escape", O_RDONLY, 0, in_root)
    fails_with(errno.EBADF, root.openat2, 77, "/f", O_RDONLY, 0, in_root)


def test_resolve_no_symlinks_is_eloop_at_any_component(root: TargetTask, tree: int) -> None:
    no_symlinks = abi.RESOLVE_NO_SYMLINKS
    root.symlink("d", "box/to_d")
    assert open_in(root, tree, "f", no_symlinks) == b"inside"
    fails_with(errno.ELOOP, root.openat2, tree, "relative", O_RDONLY, 0, no_symlinks)
    fails_with(errno.ELOOP, root.openat2, tree, "to_d/x", O_RDONLY, 0, no_symlinks)
    root.openat2(tree, "relative", abi.O_PATH | abi.O_NOFOLLOW, 0, no_symlinks)


def test_resolve_no_xdev_stops_at_mounts_in_both_directions(root: TargetTask, tree: int) -> None:
    root.mount("none", "box/d", "tmpfs", 0, "")
    make_file(root, "box/d/f", b"mounted")
    no_xdev = abi.RESOLVE_NO_XDEV
    fails_with(errno.EXDEV, root.openat2, tree, "d/f", O_RDONLY, 0, no_xdev)
    inside = root.open("box/d", abi.O_PATH, 0)
    fails_with(errno.EXDEV, root.openat2, inside, "../f", O_RDONLY, 0, no_xdev)
    assert open_in(root, inside, "f", no_xdev) == b"mounted"
    root.close(inside)
    root.umount2("box/d", 0)


def test_resolve_no_xdev_refuses_an_absolute_symlink_unless_the_root_was_met_before(
    root: TargetTask,
) -> None:
    root.mkdir("d", 0o755)
    root.symlink("/d", "link")
    no_xdev = abi.RESOLVE_NO_XDEV
    fails_with(errno.EXDEV, root.openat2, AT_FDCWD, "link", O_RDONLY, 0, no_xdev)
    root.openat2(AT_FDCWD, "/link", O_RDONLY, 0, no_xdev)
    root.openat2(AT_FDCWD, "../link", O_RDONLY, 0, no_xdev)
    root.openat2(AT_FDCWD, "link", O_RDONLY, 0, no_xdev | abi.RESOLVE_IN_ROOT)


def test_resolve_no_xdev_takes_an_absolute_path_to_another_mount_than_the_cwds(
    root: TargetTask,
) -> None:
    root.mkdir("mnt", 0o755)
    root.mount("none", "mnt", "tmpfs", 0, "")
    root.chdir("mnt")
    root.close(root.openat2(AT_FDCWD, "/", O_RDONLY, 0, abi.RESOLVE_NO_XDEV))
    root.chdir("/")


def test_resolve_no_magiclinks_lets_ordinary_symlinks_be(root: TargetTask, tree: int) -> None:
    assert open_in(root, tree, "relative", abi.RESOLVE_NO_MAGICLINKS) == b"inside"


def test_resolve_cached_is_eagain_for_what_must_be_changed(root: TargetTask, tree: int) -> None:
    cached = abi.RESOLVE_CACHED
    assert open_in(root, tree, "f", cached) == b"inside"
    create = abi.O_CREAT | abi.O_WRONLY
    fails_with(errno.EAGAIN, root.openat2, tree, "new", create, 0o644, cached)
    fails_with(errno.EAGAIN, root.openat2, tree, "f", abi.O_WRONLY | abi.O_TRUNC, 0, cached)


def test_openat2_refuses_what_openat_ignores(root: TargetTask, tree: int) -> None:
    fails_with(errno.EINVAL, root.openat2, tree, "f", 1 << 30, 0, 0)
    fails_with(errno.EINVAL, root.openat2, tree, "f", O_RDONLY, 0o644, 0)
    fails_with(errno.EINVAL, root.openat2, tree, "f", abi.O_PATH | abi.O_RDWR, 0, 0)
    fails_with(errno.EINVAL, root.openat2, tree, "f", abi.O_CREAT | abi.O_WRONLY, 0o10000, 0)
    fails_with(errno.EINVAL, root.openat2, tree, "f", O_RDONLY, 0, 0x40)
    both = abi.RESOLVE_BENEATH | abi.RESOLVE_IN_ROOT
    fails_with(errno.EINVAL, root.openat2, tree, "f", O_RDONLY, 0, both)
    root.openat(tree, "f", 1 << 30, 0o644)


def test_lstat_does_not_follow_and_stat_does(root: TargetTask) -> None:
    make_file(root, "f", b"12345")
    root.symlink("f", "link")
    assert root.stat("link").st_size == 5
    assert root.lstat("link").st_size == 1
    assert root.newfstatat(AT_FDCWD, "link", AT_SYMLINK_NOFOLLOW).st_size == 1


def test_getcwd_of_a_removed_directory_is_enoent(root: TargetTask) -> None:
    root.mkdir("d", 0o755)
    root.chdir("d")
    root.rmdir("/d")
    fails_with(errno.ENOENT, root.getcwd)
    fails_with(errno.ENOENT, root.mkdir, "x", 0o755)
    root.stat(".")
    assert root.stat("..").st_ino == root.stat("/").st_ino


def test_getcwd_outside_of_the_root_is_unreachable(root: TargetTask) -> None:
    root.mkdir("jail", 0o755)
    root.mkdir("a", 0o755)
    root.chdir("a")
    root.chroot("/jail")
    assert root.getcwd() == b"(unreachable)/a"


def test_the_walk_needs_search_permission_on_each_directory(
    root: TargetTask, alice: TargetTask
) -> None:
    root.mkdir("locked", 0o700)
    make_file(root, "locked/f")
    fails_with(errno.EACCES, alice.stat, "locked/f")
    fails_with(errno.EACCES, alice.stat, "locked/missing")
    fails_with(errno.EACCES, alice.chdir, "locked")
    alice.stat("locked")


def test_the_root_itself_needs_no_search_permission(root: TargetTask, alice: TargetTask) -> None:
    root.chmod("/", 0o644)
    alice.stat("/")
    fails_with(errno.EACCES, alice.stat, "/x")
    fails_with(errno.EACCES, alice.stat, ".//x")
