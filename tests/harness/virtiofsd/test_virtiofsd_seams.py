"""A config as options of the mount and the sandbox."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from virtiofsd_support import OPEN, client_of, content, refusal, virtiofsd

from harness.compose import Tree
from harness.errors import UsageError
from harness.virtiofsd import crosvm, seams
from harness.virtiofsd.arguments import parse

BASE = ["--fd=3", "--shared-dir=."]
CAP_CHOWN = 1 << 0
CAP_SYS_ADMIN = 1 << 21


def words(*argv: str) -> set[str]:
    options = seams.mount_options(parse([*BASE, *argv]))
    return {key if value is None else f"{key}={value}" for key, value in options}


@pytest.mark.parametrize(
    ("argv", "gone", "come"),
    [
        (["--xattr"], {"noxattr"}, {"xattr"}),
        (["--posix-acl"], {"noposix_acl", "noxattr"}, {"posix_acl", "xattr"}),
        (["--allow-direct-io"], set(), {"allow_direct_io"}),
        (["--allow-mmap"], {"noallow_mmap"}, {"allow_mmap"}),
        (["--preserve-noatime"], {"nopreserve_noatime"}, {"preserve_noatime"}),
        (["--killpriv-v2"], {"nokillpriv_v2"}, {"killpriv_v2"}),
        (["--writeback"], {"nowriteback"}, {"writeback"}),
        (["--no-readdirplus"], {"readdirplus"}, {"noreaddirplus"}),
        (["--cache=never"], {"cache=auto", "readdirplus"}, {"cache=never", "noreaddirplus"}),
        (["--no-announce-submounts"], {"announce_submounts"}, {"noannounce_submounts"}),
        (
            ["--inode-file-handles=fallback", "--translate-uid=map:0:1:1"],
            set(),
            {"translate_uid=map:0:1:1"},
        ),
    ],
)
def test_an_option_of_virtiofsds_is_one_of_the_mount(
    argv: list[str], gone: set[str], come: set[str]
) -> None:
    before, after = words(), words(*argv)
    assert (before - after, after - before) == (gone, come)


def test_keys_of_crosvms_are_options_of_the_mount() -> None:
    text = (
        "rewrite-security-xattrs,timeout=3,cache=always,privileged_quota_uids='1 2',"
        "security_ctx=false,posix_acl=false,ascii_casefold"
    )
    config = crosvm.parse(["--fd=3", "--tag=t", "--shared-dir=.", "--cfg", text])
    found = set(seams.mount_options(config))
    assert {
        ("rewrite_security_xattrs", None), ("timeout", "3"), ("cache", "always"),
        ("privileged_quota_uids", "1 2"), ("nosecurity_label", None), ("noposix_acl", None),
        ("ascii_casefold", None), ("inode_file_handles", "never"), ("xattr", None),
    } <= found  # fmt: skip
    free = ["--disable-sandbox", "--skip-pivot-root=true", "--allowlist-socket-path=A"]
    text = "max_dynamic_perm=1,max_dynamic_xattr=2,ugid_map='0 0 1 1 7 /; 2 2 3 3 7 /a'"
    config = crosvm.parse(["--fd=3", "--tag=t", "--shared-dir=.", *free, "--cfg", text])
    assert {
        ("max_dynamic_perm", "1"), ("max_dynamic_xattr", "2"), ("allowlist", None),
        ("ugid_map", "0 0 1 1 7 /;2 2 3 3 7 /a"),
    } <= set(seams.mount_options(config))  # fmt: skip
    negative = crosvm.parse(["--fd=3", "--tag=t", "--shared-dir=.", "--cfg=negative_timeout=4"])
    assert ("negative_timeout", "4") in seams.mount_options(negative)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--xattrmap=:prefix:all:a,b:c\\d: :ok:all:::", "--allow-direct-io", "--readonly"],
        ["--translate-uid=map,0,1,1", "--translate-uid=forbid-guest:5:1"],
        ["--translate-gid=host:1:2:3", "--translate-gid=squash-guest:1:2:3"],
        ["--xattrmap=" + r"\ok\all\\\ ".strip(), "--allow-direct-io"],
        ["--cache=metadata", "--preserve-noatime", "--inode-file-handles=never"],
    ],
)  # fmt: skip
def test_the_passthrough_takes_what_it_is_given(tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "f").touch()
    config = parse(["--fd=3", "--shared-dir", str(tmp_path), *argv])
    with Tree([seams.root_mount(config, str(tmp_path))]) as tree:
        assert tree.task.listdir("/") == ["f"]


def test_a_config_is_the_sandbox_it_asks_for() -> None:
    argv = ["--modcaps=+sys_admin", "--rlimit-nofile=5000", "--seccomp=log"]
    options = seams.sandbox_options(parse([*BASE, *argv, "--inode-file-handles=never"]), (7,))
    assert (options.mode, options.shared_dir, options.seccomp) == ("namespace", ".", "log")
    assert (options.modcaps, options.rlimit_nofile) == ("+sys_admin", 5000)
    assert (options.keep_dac_read_search, tuple(options.keep_fds or ())) == (False, (7,))
    device = crosvm.parse(
        ["--fd=3", "--tag=t", "--shared-dir=.", "--skip-pivot-root=true"], euid=5, egid=6
    )
    options = seams.sandbox_options(device, ())
    assert (options.uid_map, options.gid_map) == (((5, 5, 1),), ((6, 6, 1),))
    assert options.skip_pivot_root
    with pytest.raises(UsageError, match="nosuch"):
        seams.sandbox_options(parse([*BASE, "--modcaps=+nosuch"]), ())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ((), CAP_CHOWN),
        (("--modcaps=+sys_admin:-chown",), CAP_SYS_ADMIN),
        (("-o", "modcaps=+sys_admin"), CAP_CHOWN | CAP_SYS_ADMIN),
    ],
)
def test_the_daemon_has_the_capabilities_it_is_told(
    tmp_path: Path, argv: tuple[str, ...], expected: int
) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "greeting").write_bytes(b"hello")
    with virtiofsd(tmp_path, *argv) as daemon, client_of(daemon.socket_path) as client:
        assert content(client, b"greeting") == b"hello"
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("CapPrm:")]
        assert int(line.split()[1], 16) & (CAP_CHOWN | CAP_SYS_ADMIN) == expected


def test_a_capability_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    argv = ("--socket-path", tmp_path / "s", "--shared-dir", tmp_path, "--modcaps=+nosuch", *OPEN)
    assert "nosuch" in refusal("virtiofsd", *argv)
    assert list(tmp_path.iterdir()) == []
