"""Ids that differ between client and host: the rules, the maps, and a user namespace as oracle."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from passthrough_kernel import Call, Kernel, by_task, outcome, tree

from fsimpl.passthrough.idmap import IdTable, parse_extents
from vfs import Credentials, abi
from vfs.task import Task

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users: needs root")
MountWith = Callable[..., Task]
TOP = (1 << 32) - 1
CLONE_NEWUSER = 0x10000000


def table(*rules: str) -> IdTable:
    made = IdTable()
    for rule in rules:
        made.translate(rule)
    return made


def errno_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


# The rules


def test_map_translates_in_both_directions() -> None:
    ids = table("map:1000:2000:10")
    assert [ids.to_host(n) for n in (999, 1000, 1009, 1010)] == [999, 2000, 2009, 1010]
    assert [ids.to_guest(n) for n in (1999, 2000, 2009, 2010)] == [1999, 1000, 1009, 2010]


def test_guest_and_host_translate_in_one_direction() -> None:
    ids = table("guest:0:1000:5", "host:7000:3:2")
    assert (ids.to_host(4), ids.to_guest(1004)) == (1004, 1004)
    assert (ids.to_guest(7001), ids.to_host(4)) == (4, 1004)


def test_squash_leads_many_ids_to_one() -> None:
    ids = table(f"squash-guest:0:1000:{TOP}", f"squash-host:1000:0:{TOP - 1000}")
    assert {ids.to_host(n) for n in (0, 1, 70000, TOP - 1)} == {1000}
    assert {ids.to_guest(n) for n in (1000, 5000)} == {0}
    assert ids.to_guest(999) == 999


def test_a_forbidden_id_is_a_permission_error() -> None:
    ids = table("forbid-guest:0:1")
    assert errno_of(lambda: ids.to_host(0)) == errno.EPERM
    assert (ids.to_host(1), ids.to_guest(0)) == (1, 0)


@pytest.mark.parametrize("rule", ["map:1:2:3", "map,1,2,3", "map;1;2;3", "map 1 2 3", "MAP/1/2/3"])
def test_any_one_separator_will_do(rule: str) -> None:
    assert table(rule).to_host(3) == 4


@pytest.mark.parametrize(
    "rules",
    [
        ("map:0:1000:10", "map:9:5000:1"),
        ("map:0:1000:10", "map:50:1009:1"),
        ("guest:0:1000:10", "squash-guest:5:0:1"),
        ("guest:0:1000:10", "forbid-guest:9:5"),
        ("host:100:0:10", "squash-host:95:0:6"),
        ("map:0:1000:10", "host:1005:0:1"),
    ],
)
def test_ranges_that_overlap_are_refused(rules: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="overlap"):
        table(*rules)


@pytest.mark.parametrize(
    "rule",
    [
        "", "map", "map:", "map:1:2", "map:1:2:3:4", "map:a:2:3", "map:-1:2:3", "map:1:2:0",
        "map:1,2:3", "nonsense:1:2:3", "forbid-guest:1:2:3", "map:4294967295:0:2",
        "map:0:4294967295:2", "map:4294967296:0:1", "guest:0:0:99999999999", ":1:2:3",
        "map:\u0661:2:3",
    ],
)  # fmt: skip
def test_a_malformed_rule_is_refused(rule: str) -> None:
    with pytest.raises(ValueError):
        table(rule)


@given(
    st.integers(0, 1 << 31), st.integers(0, 1 << 31), st.integers(1, 1 << 31), st.integers(0, TOP)
)
def test_a_mapped_id_comes_back_as_itself(guest: int, host: int, count: int, number: int) -> None:
    ids = table(f"map:{guest}:{host}:{count}")
    if guest <= number < guest + count:
        there = ids.to_host(number)
        assert there is not None and host <= there < host + count
        assert ids.to_guest(there) == number
    else:
        assert ids.to_host(number) == number


@given(st.text(max_size=20))
def test_any_text_is_a_rule_or_a_value_error(text: str) -> None:
    try:
        table(text)
    except ValueError:
        return
    assert any(character.isdigit() for character in text)


@given(
    st.lists(
        st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(1, 30)),
        max_size=6,
    )
)
def test_extents_are_taken_exactly_if_they_are_disjoint_on_both_sides(
    extents: list[tuple[int, int, int]],
) -> None:
    expected: dict[int, int] = {}
    back: dict[int, int] = {}
    disjoint = bool(extents)
    for inside, outside, count in extents:
        for offset in range(count):
            disjoint &= inside + offset not in expected and outside + offset not in back
            expected[inside + offset] = outside + offset
            back[outside + offset] = inside + offset
    text = ",".join(" ".join(map(str, extent)) for extent in extents)
    ids = IdTable(total=True)
    if not disjoint:
        with pytest.raises(ValueError):
            parse_extents(text, ids)
        return
    parse_extents(text, ids)
    assert [ids.to_host(n) for n in range(131)] == [expected.get(n) for n in range(131)]
    assert [ids.to_guest(n) for n in range(131)] == [back.get(n) for n in range(131)]


# On a mount


@needs_root
def test_a_squashed_client_makes_files_of_one_host_user(
    mount_with: MountWith, shared: Path
) -> None:
    shared.chmod(0o777)
    task = mount_with(
        f"translate_uid=squash-guest:0:1000:{TOP},translate_uid=host:1000:0:1,"
        f"translate_gid=squash-guest:0:1001:{TOP},translate_gid=host:1001:0:1"
    )
    user = task.clone(cred=Credentials(5000, 5000))
    task.mkdir("d", 0o777)
    user.close(user.open("d/f", abi.O_CREAT | abi.O_WRONLY, 0o644))
    user.symlink("x", "l")
    for name in ("d", "d/f", "l"):
        host, inside = (shared / name).lstat(), task.lstat(name)
        assert (host.st_uid, host.st_gid) == (1000, 1001)
        assert (inside.st_uid, inside.st_gid) == (0, 0)
    task.chown("d/f", 77, 78)
    assert ((shared / "d/f").stat().st_uid, (shared / "d/f").stat().st_gid) == (1000, 1001)


@needs_root
def test_permissions_are_judged_by_the_ids_that_the_client_sees(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "f").write_bytes(b"x")
    os.chown(shared / "f", 2000, 3000)
    (shared / "f").chmod(0o640)
    task = mount_with("translate_uid=map:1000:2000:1,translate_gid=map:1500:3000:1")
    assert (task.stat("f").st_uid, task.stat("f").st_gid) == (1000, 1500)
    owner = task.clone(cred=Credentials(1000, 9))
    owner.close(owner.open("f", abi.O_RDWR))
    owner.chmod("f", 0o600)
    owner.chmod("f", 0o640)
    member = task.clone(cred=Credentials(9, 9, [1500]))
    member.close(member.open("f", abi.O_RDONLY))
    assert errno_of(lambda: member.open("f", abi.O_WRONLY)) == errno.EACCES
    namesake = task.clone(cred=Credentials(2000, 3000))
    assert errno_of(lambda: namesake.open("f", abi.O_RDONLY)) == errno.EACCES


@needs_root
def test_a_forbidden_caller_makes_nothing_and_is_given_nothing(
    mount_with: MountWith, shared: Path
) -> None:
    shared.chmod(0o777)
    (shared / "f").touch()
    task = mount_with("translate_uid=forbid-guest:666:1,translate_gid=forbid-guest:666:1")
    bad = task.clone(cred=Credentials(666, 0))
    assert errno_of(lambda: bad.mkdir("d")) == errno.EPERM
    assert errno_of(lambda: bad.open("g", abi.O_CREAT | abi.O_RDWR, 0o600)) == errno.EPERM
    bad_group = task.clone(cred=Credentials(0, 666))
    assert errno_of(lambda: bad_group.symlink("x", "l")) == errno.EPERM
    assert errno_of(lambda: task.chown("f", 666, -1)) == errno.EPERM
    assert errno_of(lambda: task.chown("f", -1, 666)) == errno.EPERM
    assert os.listdir(shared) == ["f"]
    assert (shared / "f").stat().st_uid == 0


@needs_root
def test_translated_ids_and_acls_exclude_each_other(mount_with: MountWith, shared: Path) -> None:
    assert errno_of(lambda: mount_with("translate_uid=map:1:2:3,posix_acl")) == errno.EINVAL
    (shared / "f").touch()
    task = mount_with("translate_gid=map:1:2:3")
    assert errno_of(lambda: task.getxattr("f", "system.posix_acl_access")) == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    "options",
    [
        "translate_uid=map:1:2:3,uidmap=0 1000 1",
        "translate_uid=map:1:2",
        "translate_uid=map:0:9:5,translate_uid=map:4:99:1",
        "translate_uid",
        "uidmap=0 1000",
        "uidmap=0 1000 1\\,0 2000 1",
        "gidmap=",
        "uid=-1",
        "gid=x",
    ],
)
def test_options_about_ids_that_make_no_sense_are_refused(
    mount_with: MountWith, options: str
) -> None:
    assert errno_of(lambda: mount_with(options)) == errno.EINVAL


@needs_root
def test_what_the_clients_root_makes_belongs_to_uid_and_gid(
    mount_with: MountWith, shared: Path
) -> None:
    shared.chmod(0o777)
    task = mount_with("uidmap=0 100000 1000;1000 5000 1,gidmap=0 100000 2000,uid=1000,gid=7")
    task.mkdir("d")
    assert ((shared / "d").stat().st_uid, (shared / "d").stat().st_gid) == (5000, 100007)
    assert (task.stat("d").st_uid, task.stat("d").st_gid) == (1000, 7)


# A user namespace with the same maps as the oracle

UIDMAP = "0 100000 1500;5000 50000 10"
GIDMAP = "0 200000 1500;5000 60000 10"


def in_user_namespace(
    directory: Path, uid: int, gid: int, groups: list[int], calls: list[Call]
) -> list[object]:
    """The outcomes of ``calls`` in a child with UIDMAP and GIDMAP and, inside, these ids."""
    reader, writer = os.pipe()
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWUSER):
                raise OSError(ctypes.get_errno(), "unshare")
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os.chdir(directory)
            os.umask(0)
            # As the namespace's root, whom leaving costs the capabilities.
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump([outcome(call, Kernel()) for call in calls], pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    os.read(ready[0], 1)
    Path(f"/proc/{child}/uid_map").write_text(UIDMAP.replace(";", "\n"))
    Path(f"/proc/{child}/gid_map").write_text(GIDMAP.replace(";", "\n"))
    os.write(go[1], b"x")
    with os.fdopen(reader, "rb") as pipe:
        outcomes: list[object] = pickle.load(pipe)
    for fd in (*ready, *go):
        os.close(fd)
    assert os.waitpid(child, 0)[1] == 0
    return outcomes


def let_others_reach(path: Path) -> None:
    for above in (path, *path.parents[:-1]):
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)


def populate(directory: Path) -> None:
    directory.chmod(0o755)
    for name, mode, uid, gid in (
        ("open", 0o1777, 100000, 200000),
        ("mine", 0o755, 101000, 201000),
        ("setgid", 0o2777, 100000, 260 + 200000),
        ("alien", 0o777, 0, 0),
    ):
        (directory / name).mkdir()
        os.chown(directory / name, uid, gid)
        (directory / name).chmod(mode)
    for name, mode, uid, gid in (
        ("open/mine", 0o640, 101000, 201000),
        ("open/other", 0o604, 50003, 60003),
        ("open/ours", 0o660, 100001, 200300),
        ("alien/f", 0o666, 0, 0),
        ("alien/unmapped", 0o644, 101499 + 1, 201499 + 1),
    ):
        (directory / name).write_bytes(b"content")
        os.chown(directory / name, uid, gid)
        (directory / name).chmod(mode)


def owner(name: str) -> Call:
    def call(api: Task) -> tuple[int, int]:
        found = api.lstat(name)
        return found.st_uid, found.st_gid

    return call


def make(name: str, mode: int = 0o644) -> Call:
    def call(api: Task) -> None:
        api.close(api.open(name, os.O_CREAT | os.O_WRONLY, mode))

    return call


LOOKING = [
    owner(name)
    for name in ("open", "mine", "setgid", "alien", "open/other", "open/ours", "alien/unmapped")
]
USING: list[Call] = [
    make("mine/new"),
    make("open/new"),
    make("setgid/new", 0o2755),
    make("alien/new"),
    lambda api: api.mkdir("setgid/dir", 0o755),
    lambda api: api.symlink("x", "mine/link"),
    lambda api: api.mknod("mine/fifo", 0o010600, 0),
    lambda api: api.chmod("open/mine", 0o600),
    lambda api: api.chmod("open/other", 0o600),
    lambda api: api.chown("open/mine", -1, 300),
    lambda api: api.chown("open/mine", -1, 301),
    lambda api: api.chown("open/mine", 2, -1),
    lambda api: api.unlink("open/other"),
    lambda api: api.truncate("open/ours", 2),
    lambda api: api.truncate("open/other", 2),
    lambda api: api.close(api.open("open/ours", os.O_WRONLY)),
    lambda api: api.close(api.open("open/mine", os.O_RDONLY)),
    *LOOKING,
    *(owner(n) for n in ("mine/new", "open/new", "setgid/new", "setgid/dir", "alien/new")),
]
CHOWNING: list[Call] = [
    lambda api: api.chown("open/mine", 5009, 5009),
    lambda api: api.chown("open/mine", 1500, -1),
    lambda api: api.chown("open/mine", -1, 4999),
    lambda api: api.chown("open/ours", 100000, -1),
    owner("open/mine"),
    owner("open/ours"),
]


@needs_root
@pytest.mark.parametrize(
    ("uid", "gid", "groups", "calls"),
    [
        (1000, 1000, [300], LOOKING + USING),
        (5003, 5003, [], LOOKING + USING),
        (0, 0, [], LOOKING + CHOWNING),
    ],
    ids=["user", "other-extent", "root"],
)
def test_mapped_ids_do_what_a_user_namespace_with_these_maps_does(
    mount_with: MountWith,
    shared: Path,
    tmp_path: Path,
    uid: int,
    gid: int,
    groups: list[int],
    calls: list[Call],
) -> None:
    let_others_reach(tmp_path)
    host = tmp_path / "host"
    host.mkdir()
    populate(host)
    populate(shared)
    expected = in_user_namespace(host, uid, gid, groups, calls)
    task = mount_with(f"uidmap={UIDMAP},gidmap={GIDMAP}")
    caller = task.clone(cred=Credentials(uid, gid, groups))
    assert by_task(caller, calls) == expected
    assert tree(shared) == tree(host)


def acl_of(*named: tuple[int, int]) -> bytes:
    """user::rwx, the named entries (tag, id) with r, group::r, mask::r, other::-."""
    entries = [(tag, 4, number) for tag, number in named]
    entries = sorted([*entries, (1, 7, TOP), (4, 4, TOP), (16, 4, TOP), (32, 0, TOP)])
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@needs_root
def test_ids_in_acls_are_mapped_as_a_user_namespace_maps_them(
    mount_with: MountWith, shared: Path, tmp_path: Path
) -> None:
    access = "system.posix_acl_access"
    calls: list[Call] = [
        lambda api: api.setxattr("mine/f", access, acl_of((2, 5001), (8, 7))),
        lambda api: api.setxattr("mine/g", access, acl_of((2, 4000))),
        lambda api: api.getxattr("mine/f", access),
        lambda api: api.getxattr("mine/unmapped", access),
    ]
    for directory in (host := tmp_path / "host", shared):
        directory.mkdir(exist_ok=True)
        populate(directory)
        for name in ("f", "g", "unmapped"):
            (directory / "mine" / name).touch()
            os.chown(directory / "mine" / name, 101000, 201000)
        os.setxattr(directory / "mine" / "unmapped", access, acl_of((2, 7), (8, 8)))
    let_others_reach(tmp_path)
    expected = in_user_namespace(host, 1000, 1000, [], calls)
    task = mount_with(f"uidmap={UIDMAP},gidmap={GIDMAP}").clone(cred=Credentials(1000, 1000))
    assert by_task(task, calls) == expected
    for name in ("f", "g"):
        assert sorted(os.listxattr(shared / "mine" / name)) == sorted(
            os.listxattr(host / "mine" / name)
        )
    assert os.getxattr(shared / "mine/f", access) == os.getxattr(host / "mine/f", access)
    assert os.getxattr(shared / "mine/f", access) == acl_of((2, 50001), (8, 200007))


@needs_root
def test_a_capability_given_inside_holds_in_the_namespace_of_the_map_only(
    mount_with: MountWith, shared: Path, tmp_path: Path
) -> None:
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    calls: list[Call] = [
        lambda api: api.setxattr("f", "security.capability", capability),
        lambda api: api.getxattr("f", "security.capability"),
        lambda api: api.getxattr("hosts", "security.capability"),
    ]
    for directory in (host := tmp_path / "host", shared):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
        for name in ("f", "hosts"):
            (directory / name).touch()
            os.chown(directory / name, 100000, 200000)
        os.setxattr(directory / "hosts", "security.capability", capability)
    let_others_reach(tmp_path)
    expected = in_user_namespace(host, 0, 0, [], calls)
    task = mount_with(f"uidmap={UIDMAP},gidmap={GIDMAP}")
    assert by_task(task, calls) == expected
    name = "security.capability"
    assert os.getxattr(shared / "f", name) == os.getxattr(host / "f", name)
    assert len(os.getxattr(shared / "f", name)) == 24
