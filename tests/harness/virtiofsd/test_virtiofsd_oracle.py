"""Command lines, beside what Debian's Rust virtiofsd makes of the same words."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtiofsd_support import COMMAND

from harness.errors import UsageError
from harness.guest.newer import Newer
from harness.virtiofsd.arguments import parse

BASE = ("--shared-dir", "D", "--socket-path", "S")

# Refused or taken by both while they parse.
PARSED = (
    """
--tag=|--tag=x|--tag=éééééééééééééééééé|--tag=ééééééééééééééééééé
--thread-pool-size=|--thread-pool-size=4|--thread-pool-size=+04|--thread-pool-size=-1
--xattr --xattr|--posix-acl|--security-label|--readonly|--writeback|--allow-mmap|--xattr=yes
--sandbox=NONE|--sandbox=chroot|--sandbox=jail|--seccomp=trap|--seccomp=KILL|--seccomp=allow
--no-announce-submounts --announce-submounts|--announce-submounts --no-announce-submounts
--killpriv-v2 --no-killpriv-v2|--no-killpriv-v2 --killpriv-v2|--allow-direct-io|--preserve-noatime
--inode-file-handles=never|--inode-file-handles=fallback|--inode-file-handles=Prefer
--inode-file-handles=mandatory|--inode-file-handles|--no-readdirplus|--syslog
--cache=Never|--cache=metadata|--cache=none|--cache=auto --cache=always
--log-level=ERROR|--log-level=off|--log-level=err|--log-level=warning
--rlimit-nofile=0|--rlimit-nofile=+5000|--rlimit-nofile=-1|--rlimit-nofile=18446744073709551616
--translate-uid=map:0:1:1|--translate-uid=Map,0,1,1|--translate-uid=map:0:1|--translate-uid=map
--translate-uid=squash-host/0/1/4294967294|--translate-uid=forbid-guest:0:5
--translate-uid=forbid-guest:0:5:1|--translate-uid=forbid-host:0:5|--translate-uid=map:0:1:1:
--translate-gid=map:0/1:1|--translate-gid=map:0x1:1:1|--translate-gid=map:0:0:4294967296
--posix-acl --translate-uid=map:0:1:1|--posix-acl --translate-gid=map:0:1:1
--migration-mode=file-handles|--migration-mode=magic|--migration-mode=Find-Paths
--migration-on-error=guest-error|--migration-on-error=retry|--migration-confirm-paths
--fd=3|--fd=x|--socket=S|--sock=S|word|--block-size=5|-f|-d|-oxattr|-o xattr,no_xattr
-o cache=none|-o cache=NONE|-o cache=never|-o cache=metadata|-o loglevel=err|-o loglevel=error
-o sandbox=chroot|-o sandbox=none|-o flock|-o no_flock|-o posix_lock|-o no_posix_lock
-o timeout=5|-o xattrmap=x|-o xattrmap=:ok:all:::|-o announce_submounts|-o no_announce_submounts
-o killpriv_v2,no_killpriv_v2|-o readdirplus,no_readdirplus|-o posix_acl,no_posix_acl
-o security_label,no_security_label|-o allow_direct_io,no_allow_direct_io|-o writeback,no_writeback
-o rw|-o readonly|-o xattr,|-o xattr=1|-o source=E
""".replace("\n", "|")
    .strip("|")
    .split("|")
)

# Refused or taken by both when they start.
STARTED = (
    """
--migration-mode=file-handles --migration-verify-handles
--migration-mode=file-handles --migration-confirm-paths
--migration-verify-handles --migration-confirm-paths
--translate-uid=map:0:1:5 --translate-uid=guest:4:9:1
--translate-uid=map:0:1:5 --translate-uid=guest:5:9:1
--translate-uid=map:0:10:5 --translate-uid=map:20:12:1
--translate-uid=map:0:10:5 --translate-uid=host:20:12:1
--translate-gid=squash-host:0:10:5 --translate-gid=squash-host:3:20:5
--translate-gid=forbid-guest:0:5 --translate-gid=map:0:10:1
--modcaps=|--modcaps=x|--modcaps=+|--modcaps=+sys_admin::-chown|--modcaps=+SYS_ADMIN:-chown
--modcaps=-dac_read_search --inode-file-handles=prefer
--modcaps=-dac_read_search --inode-file-handles=never
--socket-group=|--uid-map=:0:1:1:|--gid-map=:0:1:1:|--posix-acl --xattrmap=:ok:all:::
""".replace("\n", "|")
    .strip("|")
    .split("|")
)

# What only we take, and why.
OURS = {
    "--daemonize": "the predecessor's",
    "-o debug": "the predecessor's",
    "-o log_level=warn": "the predecessor's",
    "-o allow_root": "the predecessor's",
    "--inode-file-handles never": "they want an equals sign",
    "--translate-uid=mapé0é1é1": "they want a separator in ASCII",
    "--xattrmap=:ok:all:::\v:bad:all:::": "to them that is no white space",
}
# What only they take, and why.
THEIRS = {
    "--translate-uid=map:0:1:0": "a range of no ids",
    "--translate-uid=map:0:+1:1": "a sign",
    "--translate-uid=map:7:7:4294967295": "the range ends beyond the last id",
}


def taken_by_us(words: list[str]) -> bool:
    try:
        parse([*BASE, *words])
    except UsageError:
        return False
    return True


def parsed_by_them(newer: Newer, words: list[str]) -> bool:
    result = subprocess.run(
        [newer.virtiofsd, *BASE, "--print-capabilities", *words], capture_output=True, timeout=60
    )
    assert result.returncode in (0, 2), result.stderr
    return result.returncode == 0


def started_by_them(newer: Newer, directory: Path, words: list[str]) -> bool:
    command = [newer.virtiofsd, *BASE, "--sandbox=none", "--seccomp=none", *words]
    with subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        # It says that it waits when nothing can be refused any more, and else ends.
        waits = any("Waiting for vhost-user" in line for line in daemon.stderr)
        daemon.kill()
    (directory / "S").unlink(missing_ok=True)
    return waits


def test_a_command_line_is_taken_by_both_or_by_none(newer: Newer) -> None:
    differ = [
        line
        for line in PARSED
        if taken_by_us(line.split(" ")) != parsed_by_them(newer, line.split(" "))
    ]
    assert differ == []
    taken = [line for line in PARSED if taken_by_us(line.split(" "))]
    assert len(taken) > 40 and len(PARSED) - len(taken) > 40


@pytest.mark.skipif(os.geteuid() != 0, reason="what a user may map is another question")
def test_conflicts_are_found_by_both_when_they_start(newer: Newer, tmp_path: Path) -> None:
    (tmp_path / "D").mkdir()
    differ = [
        line
        for line in STARTED
        if taken_by_us(line.split(" ")) != started_by_them(newer, tmp_path, line.split(" "))
    ]
    assert differ == []


@pytest.mark.parametrize("line", [*OURS, *THEIRS])
def test_what_one_of_the_two_takes_is_what_is_listed(newer: Newer, line: str) -> None:
    words = [line] if "xattrmap" in line else line.split(" ")
    assert taken_by_us(words) == (line in OURS)
    assert parsed_by_them(newer, words) == (line in THEIRS)


def test_libvirt_is_told_the_same_of_both(newer: Newer) -> None:
    ours, theirs = (
        json.loads(
            subprocess.run(
                [*command, "--print-capabilities"], capture_output=True, check=True
            ).stdout
        )
        for command in ([*COMMAND, "virtiofsd"], [newer.virtiofsd])
    )
    assert ours == theirs


def rules(fields: st.SearchStrategy[list[str]]) -> st.SearchStrategy[str]:
    """Words between separators, mostly with one at the end."""
    return st.builds(
        lambda separator, words, last: separator + separator.join(words) + separator[: len(last)],
        st.sampled_from(":/,|x"), fields, st.sampled_from(["yes", "yes", "yes", ""]),
    )  # fmt: skip


KINDS = st.sampled_from(["prefix", "ok", "bad", "unsupported", "OK", "none", "", " ok"])
SCOPES = st.sampled_from(["client", "server", "all", "ALL", "both", "", " all"])
KEYS = st.sampled_from(["", "user.", "trusted.a", "security.", " ", "user.virtiofs."])
SPACE = st.sampled_from(["", "", " ", "\n", "\t "])
RULES = rules(st.tuples(KINDS, SCOPES, KEYS, KEYS).map(list)) | rules(
    st.tuples(st.just("map"), KEYS, KEYS).map(list)
)
MAPS = st.lists(st.builds(str.__add__, SPACE, RULES), max_size=3).map("".join)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(text=MAPS)
def test_a_map_of_attributes_is_one_to_both_or_to_none(newer: Newer, text: str) -> None:
    words = [f"--xattrmap={text}"]
    assert taken_by_us(words) == parsed_by_them(newer, words)


NUMBERS = st.sampled_from(["1", "5", "00", "77", "4294967294", "4294967296", "-1", "x", "", " 1"])
TRANSLATIONS = st.builds(
    lambda separator, words: separator.join(words),
    st.sampled_from(":,/- ;|+"),
    st.tuples(
        st.sampled_from(
            ["guest", "host", "squash-guest", "SQUASH-HOST", "Map", "forbid-guest", "mapp", ""]
        ),
        st.lists(NUMBERS, min_size=1, max_size=3),
        st.just("1"),
    ).map(lambda parts: [parts[0], *parts[1], parts[2]]),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(text=TRANSLATIONS)
def test_a_translation_is_one_to_both_or_to_none(newer: Newer, text: str) -> None:
    words = [f"--translate-uid={text}"]
    assert taken_by_us(words) == parsed_by_them(newer, words)
