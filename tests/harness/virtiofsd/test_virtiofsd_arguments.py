"""virtiofsd's command line as a config: values, conflicts, spellings, and what is no such line."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cli.main import main
from harness.errors import UsageError
from harness.virtiofsd.arguments import parse
from harness.virtiofsd.config import Config

BASE = ["--socket-path", "S", "--shared-dir", "D"]
FALSE = ("xattr", "posix_acl", "security_label", "readonly", "writeback", "allow_direct_io",
         "allow_mmap", "preserve_noatime", "killpriv_v2", "syslog", "daemonize",
         "migration_verify_handles", "migration_confirm_paths")  # fmt: skip


def parsed(*words: str, **keywords: Any) -> Config:
    return parse([*BASE, *words], **keywords)


def refused(*words: str, **keywords: Any) -> str:
    with pytest.raises(UsageError) as caught:
        parse([*words], **keywords)
    return str(caught.value)


def test_two_options_are_enough_and_the_others_have_virtiofsds_defaults() -> None:
    config = parsed()
    assert (config.socket_path, config.shared_dir) == ("S", "D")
    assert not any(getattr(config, name) for name in FALSE)
    assert config == Config(socket_path="S", shared_dir="D")
    assert (config.sandbox, config.seccomp, config.cache) == ("namespace", "kill", "auto")
    assert (config.inode_file_handles, config.log_level) == ("prefer", "info")
    assert (config.migration_mode, config.migration_on_error) == ("find-paths", "abort")
    assert config.announce_submounts and config.readdirplus
    assert (config.thread_pool_size, config.rlimit_nofile, config.tag) == (0, None, None)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["--tag", "x" * 36], {"tag": "x" * 36}),
        (["--tag", "é"], {"tag": "é"}),
        (["--socket-group", "kvm"], {"socket_group": "kvm"}),
        (["--thread-pool-size=4"], {"thread_pool_size": 4}),
        (["--xattr"], {"xattr": True}),
        (["--posix-acl"], {"posix_acl": True, "xattr": True}),
        (["--security-label"], {"security_label": True, "xattr": True}),
        (
            ["--xattrmap=:map::user.virtiofs.:"],
            {"xattrmap": ":map::user.virtiofs.:", "xattr": True},
        ),
        (["--thread-pool-size", "+04"], {"thread_pool_size": 4}),
        (["--sandbox", "chroot"], {"sandbox": "chroot"}),
        (["--sandbox=CHROOT"], {"sandbox": "chroot"}),
        (["--cache", "Metadata"], {"cache": "metadata"}),
        (["--log-level=WARN"], {"log_level": "warn"}),
        (["--sandbox=none"], {"sandbox": "none"}),
        (["--seccomp", "log"], {"seccomp": "log"}),
        (["--readonly"], {"readonly": True}),
        (["--no-announce-submounts"], {"announce_submounts": False}),
        (["--no-announce-submounts", "--announce-submounts"], {}),
        (["--inode-file-handles=never"], {"inode_file_handles": "never"}),
        (["--inode-file-handles=mandatory"], {"inode_file_handles": "mandatory"}),
        (["--cache", "always"], {"cache": "always"}),
        (["--cache", "never"], {"cache": "never", "readdirplus": False}),
        (["--cache", "never", "--cache", "metadata"], {"cache": "metadata"}),
        (["--no-readdirplus"], {"readdirplus": False}),
        (["--allow-mmap"], {"allow_mmap": True}),
        (["--writeback"], {"writeback": True}),
        (["--allow-direct-io"], {"allow_direct_io": True}),
        (["--preserve-noatime"], {"preserve_noatime": True}),
        (["--killpriv-v2"], {"killpriv_v2": True}),
        (["--killpriv-v2", "--no-killpriv-v2"], {}),
        (["--modcaps=+sys_admin:-chown"], {"modcaps": "+sys_admin:-chown"}),
        (["--log-level", "trace"], {"log_level": "trace"}),
        (["--syslog"], {"syslog": True}),
        (["--rlimit-nofile", "0"], {"rlimit_nofile": 0}),
        (["--rlimit-nofile", "4096"], {"rlimit_nofile": 4096}),
        (
            ["--translate-uid", "map:0:1000:1", "--translate-uid", "squash-guest:1:7:9"],
            {"translate_uid": ("map:0:1000:1", "squash-guest:1:7:9")},
        ),
        (["--translate-gid=forbid-guest,0,5"], {"translate_gid": ("forbid-guest,0,5",)}),
        (["--migration-mode", "file-handles"], {"migration_mode": "file-handles"}),
        (["--migration-on-error", "guest-error"], {"migration_on_error": "guest-error"}),
        (["--migration-verify-handles"], {"migration_verify_handles": True}),
        (["--migration-confirm-paths"], {"migration_confirm_paths": True}),
        (["--daemonize"], {"daemonize": True}),
        (["-o", "no_flock,no_posix_lock,allow_root"], {}),
        (["-o", "xattr,no_xattr"], {}),
        (["-o", "no_xattr", "--posix-acl"], {"posix_acl": True, "xattr": True}),
        (["-o", "posix_acl", "-o", "no_posix_acl"], {}),
        (
            ["-osecurity_label,killpriv_v2"],
            {"security_label": True, "xattr": True, "killpriv_v2": True},
        ),
        (["-o", "no_readdirplus,writeback"], {"readdirplus": False, "writeback": True}),
        (["-o", "allow_direct_io,announce_submounts"], {"allow_direct_io": True}),
        (["-o", "cache=none"], {"cache": "never", "readdirplus": False}),
        (["-o", "loglevel=err"], {"log_level": "error"}),
        (["-o", "log_level=warn"], {"log_level": "warn"}),
        (["-o", "sandbox=chroot,modcaps=-chown"], {"sandbox": "chroot", "modcaps": "-chown"}),
        (["-o", "xattrmap=:ok:all:::"], {"xattrmap": ":ok:all:::", "xattr": True}),
        (["-o", "source=E"], {"shared_dir": "E"}),
        (["-o", "debug"], {"log_level": "debug"}),
    ],
)  # fmt: skip
def test_an_option_changes_what_it_names_and_nothing_else(
    words: list[str], changes: dict[str, Any]
) -> None:
    before, after = parsed(), parsed(*words)
    found = {
        field.name: getattr(after, field.name)
        for field in fields(Config)
        if getattr(after, field.name) != getattr(before, field.name)
    }
    found.pop("deprecated", None)
    assert found == changes


def test_deprecated_spellings_do_what_they_did_and_are_told_of() -> None:
    config = parse(["--socket=S", "--inode-file-handles=fallback", "-f", "-d", "-o", "source=D"])
    assert (config.socket_path, config.shared_dir) == ("S", "D")
    assert (config.inode_file_handles, config.log_level) == ("prefer", "debug")
    told = "\n".join(config.deprecated)
    assert len(config.deprecated) == 5
    assert all(word in told for word in ("--socket ", "-o ", "-d ", "-f ", "fallback"))
    assert parsed().deprecated == ()


@pytest.mark.parametrize("word", ["-f", "-d"])
def test_foreground_wins_over_daemonize(word: str) -> None:
    assert not parsed("--daemonize", word).daemonize


@pytest.mark.parametrize("word", ["--version", "-V"])
def test_the_version_is_told_by_either_name(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["virtiofsd", word])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("dentry ")


def test_an_inherited_socket_needs_no_path() -> None:
    config = parse(["--fd=5", "--shared-dir", "D"])
    assert (config.fd, config.socket_path) == (5, None)


def test_a_socket_of_systemds_needs_neither_path_nor_descriptor() -> None:
    config = parse(["--shared-dir", "D"], activated=True)
    assert (config.fd, config.socket_path) == (None, None)


def test_a_users_id_maps_are_extents_with_any_separator() -> None:
    config = parsed(
        "--uid-map=:0:100000:65536:", "--uid-map=/70000/1000/1/", "--gid-map", ",0,1000,1,",
        euid=1000,
    )  # fmt: skip
    assert config.uid_map == ((0, 100000, 65536), (70000, 1000, 1))
    assert config.gid_map == ((0, 1000, 1),)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--shared-dir", "D"], "--socket-path"),
        (["--socket-path", "S"], "--shared-dir"),
        ([*BASE, "--fd", "3"], "--fd and --socket-path exclude"),
        (["--shared-dir", "D", "--socket", "S", "--fd", "3"], "exclude"),
        (["--shared-dir", "D", "--fd", "3", "--socket-group", "g"], "--socket-group exclude"),
        (["--shared-dir", "D", "--fd", "x"], "--fd x"),
        (["--shared-dir", "D", "--fd", "-1"], "--fd -1"),
        (["--shared-dir", "D", "--fd", str(1 << 31)], "--fd"),
        (["--shared-dir", "D", "--fd", "²"], "--fd"),
        (["--shared-dir", "", "--fd", "3"], "--shared-dir ''"),
        (["--shared-dir", "D", "--socket-path", ""], "--socket-path ''"),
        (["--shared-dir", "D\0", "--fd", "3"], "NUL"),
        ([*BASE, "--socket-group", ""], "--socket-group"),
        ([*BASE, "--tag", ""], "1 to 36 bytes"),
        ([*BASE, "--tag", "x" * 37], "1 to 36 bytes"),
        ([*BASE, "--tag", "é" * 19], "1 to 36 bytes"),
        ([*BASE, "--thread-pool-size", "-1"], "--thread-pool-size -1"),
        ([*BASE, "--thread-pool-size", "++1"], "--thread-pool-size"),
        ([*BASE, "--thread-pool-size", "many"], "--thread-pool-size many"),
        ([*BASE, "--rlimit-nofile", str(1 << 64)], "--rlimit-nofile"),
        ([*BASE, "--sandbox", "jail"], "namespace, chroot, none"),
        ([*BASE, "--seccomp", "allow"], "kill, log, trap"),
        ([*BASE, "--cache", "none"], "auto, always, never, metadata"),
        ([*BASE, "--inode-file-handles", "always"], "never"),
        ([*BASE, "--log-level", "warning"], "warn"),
        ([*BASE, "--modcaps", "sys_admin"], "--modcaps"),
        ([*BASE, "--modcaps=+a::-b"], "--modcaps"),
        ([*BASE, "--modcaps="], "--modcaps"),
        ([*BASE, "--seccomp", "KILL"], "kill, log, trap"),
        ([*BASE, "--modcaps=-dac_read_search"], "--inode-file-handles=never"),
        ([*BASE, "--xattrmap", "prefix"], "--xattrmap"),
        ([*BASE, "--xattrmap", ":wrong:all:a:b:"], "--xattrmap"),
        ([*BASE, "--posix-acl", "--translate-uid", "map:0:1:1"], "exclude"),
        ([*BASE, "-o", "posix_acl", "--translate-gid", "map:0:1:1"], "exclude"),
        ([*BASE, "--translate-uid", "map:0:1"], "--translate-uid"),
        ([*BASE, "--translate-uid", "map:0:1:5", "--translate-uid", "guest:4:9:1"], "guest:4:9:1"),
        ([*BASE, "--migration-mode", "magic"], "find-paths"),
        ([*BASE, "--migration-on-error", "retry"], "guest-error"),
        (
            [*BASE, "--migration-mode=file-handles", "--migration-verify-handles"],
            "--migration-verify-handles",
        ),
        (
            [*BASE, "--migration-mode=file-handles", "--migration-confirm-paths"],
            "--migration-confirm-paths",
        ),
        ([*BASE, "--uid-map", ":0:1:1:"], "for users"),
        ([*BASE, "-o", "cache=never"], "none"),
        ([*BASE, "-o", "sandbox=none"], "-o sandbox"),
        ([*BASE, "-o", "flock"], "-o flock"),
        ([*BASE, "-o", "posix_lock"], "-o posix_lock"),
        ([*BASE, "-o", "timeout=5"], "-o timeout=5"),
        ([*BASE, "-o", ""], "-o"),
        ([*BASE, "--sock", "x"], "unrecognized"),
        ([*BASE, "word"], "word"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(words: list[str], named: str) -> None:
    assert named in refused(*words)


@pytest.mark.parametrize(
    "text",
    ["", ":", "::", "0:1:1", ":0:1:1", "0:1:1:", ":0:1:", ":0:1:1:1:", ":0:1:0:", ":0:x:1:",
     ":0:-1:1:", ":4294967295:0:1:", ":0:1:1/", "a0a1a1a"],
)  # fmt: skip
def test_a_malformed_id_map_is_refused(text: str) -> None:
    assert "--uid-map" in refused(*BASE, f"--uid-map={text}", euid=1000)


def test_id_maps_that_overlap_on_either_side_or_have_no_namespace_are_refused() -> None:
    inside = ["--uid-map=:0:10:5:", "--uid-map=:4:100:1:"]
    outside = ["--gid-map=:0:10:5:", "--gid-map=:100:14:1:"]
    assert "4 inside is mapped twice" in refused(*BASE, *inside, euid=1000)
    assert "14 outside is mapped twice" in refused(*BASE, *outside, euid=1000)
    assert "namespace" in refused(*BASE, "--sandbox=none", "--uid-map=:0:1:1:", euid=1000)


WORDS = st.sampled_from(
    [
        *BASE, "--fd", "3", "--fd=3", "-o", "cache=none", "-ocache=none", "xattrmap=x", "source=",
        "--uid-map", ":0:1:1:", "--xattrmap", ":ok:all:::", ":map::user.:", "--translate-uid",
        "map:0:1:1", "--posix-acl", "--tag", "", "-", "--", "-f", "-d", "-fd", "--cache",
        "--cache=", "never", "--modcaps=-", "--modcaps", "--rlimit-nofile", "0", "-1", "--sandbox",
        "none", "--print-capabilities", "--seccomp=kill", "--log-level", "off", "\0", "a\nb",
        "é\udcff", "--migration-mode=file-handles", "--migration-verify-handles",
        "--socket-group", "=", ",",
    ]
)  # fmt: skip


def asks_for_help(words: list[str]) -> bool:
    return any(re.match("--(help|version)|-[fd]*[hV]", word) for word in words)


@settings(deadline=None)
@given(st.lists(WORDS | st.text(max_size=8), max_size=10), st.sampled_from([0, 1000]))
def test_any_command_line_is_a_config_or_one_error(words: list[str], euid: int) -> None:
    if asks_for_help(words):
        return
    try:
        config = parse(words, euid=euid)
    except UsageError as error:
        assert str(error)
    else:
        assert config.shared_dir
        assert config == parse(words, euid=euid)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=6))
def test_a_command_line_that_is_refused_is_one_line_and_status_2(words: list[str]) -> None:
    argv = ["virtiofsd", *words, "--shared-dir", "/nonexistent/dentry"]
    if "--print-capabilities" in argv:
        return
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            status: object = main(argv)
        except SystemExit as end:
            status = end.code
    assert status == 2
    assert stderr.getvalue().count("\n") == 1
