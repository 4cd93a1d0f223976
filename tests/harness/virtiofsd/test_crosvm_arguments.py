"""crosvm's device fs: its options, and the grammar of --cfg and DIR:TAG:KEY=VALUE."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.virtiofsd.config import Config
from harness.virtiofsd.crosvm import parse, parse_cfg

BASE = ["--fd", "3", "--tag", "t", "--shared-dir", "D"]


def parsed(*words: str, **keywords: Any) -> Config:
    return parse([*BASE, *words], **keywords)


def test_the_defaults_are_crosvms() -> None:
    config = parsed(euid=1000, egid=100)
    assert (config.fd, config.tag, config.shared_dir) == (3, "t", "D")
    assert (config.timeout, config.negative_timeout, config.cache) == (5, 0, "auto")
    assert config.xattr and config.posix_acl and config.security_label
    assert not (config.writeback or config.rewrite_security_xattrs or config.ascii_casefold)
    assert (config.sandbox, config.seccomp, config.skip_pivot_root) == ("namespace", "kill", False)
    assert (config.uid_map, config.gid_map) == (((1000, 1000, 1),), ((100, 100, 1),))
    assert (config.uid, config.gid, config.inode_file_handles) == (0, 0, "never")
    assert not config.pid_file and not config.announce_submounts


def test_id_maps_are_extents_with_spaces_between_commas() -> None:
    config = parsed("--uid-map", "0 1000 1, 1 100000 65535", "--gid-map=5 6 7")
    assert config.uid_map == ((0, 1000, 1), (1, 100000, 65535))
    assert config.gid_map == ((5, 6, 7),)


def test_ids_in_the_namespace_are_taken() -> None:
    config = parsed("--uid", "5000", "--gid=5001")
    assert (config.uid, config.gid) == (5000, 5001)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("namespace", "kill", False)),
        (["--disable-sandbox"], ("chroot", "none", False)),
        (["--disable-sandbox", "--skip-pivot-root=true"], ("none", "none", False)),
        (["--skip-pivot-root", "true"], ("namespace", "kill", True)),
        (["--skip-pivot-root", "false"], ("namespace", "kill", False)),
    ],
)
def test_the_sandbox_is_what_is_left_of_crosvms(
    words: list[str], expected: tuple[str, str, bool]
) -> None:
    config = parsed(*words)
    assert (config.sandbox, config.seccomp, config.skip_pivot_root) == expected


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("timeout=0", "timeout", 0),
        ("negative_timeout=3", "negative_timeout", 3),
        ("cache=never", "cache", "never"),
        ("cache_policy=always", "cache", "always"),
        ("writeback", "writeback", True),
        ("writeback=false", "writeback", False),
        ("rewrite-security-xattrs=true", "rewrite_security_xattrs", True),
        ("rewrite_security_xattrs", "rewrite_security_xattrs", True),
        ("ascii_casefold=true", "ascii_casefold", True),
        ("posix_acl=false", "posix_acl", False),
        ("security_ctx=false", "security_label", False),
        ("max_dynamic_perm=2", "max_dynamic_perm", 2),
        ("max_dynamic_xattr=3", "max_dynamic_xattr", 3),
        ("privileged_quota_uids='0 5'", "privileged_quota_uids", (0, 5)),
        ("dax=false", "timeout", 5),
    ],
)
def test_a_key_of_cfg_changes_what_it_names(text: str, name: str, value: object) -> None:
    assert getattr(parsed("--cfg", text), name) == value


def test_a_map_of_owners_needs_the_whole_host_and_has_six_fields_a_row() -> None:
    free = ["--disable-sandbox", "--skip-pivot-root=true"]
    text = "timeout=0,ugid_map='0 0 1 2 7 /a,b;1 1 3 4 18 /c:d'"
    config = parsed(*free, "--cfg", text)
    assert config.ugid_map == ("0 0 1 2 7 /a,b", "1 1 3 4 18 /c:d")
    with pytest.raises(UsageError, match="--disable-sandbox"):
        parsed("--cfg", text)
    with pytest.raises(UsageError, match="GUID GGID"):
        parsed(*free, "--cfg", "ugid_map='0 0 1 2 /a'")


def test_words_are_separated_by_commas_or_else_by_colons() -> None:
    expected = {"timeout": "1", "cache": "never", "writeback": "true"}
    assert parse_cfg("--cfg", "timeout=1,cache=never,writeback") == expected
    assert parse_cfg("--cfg", "timeout=1:cache=never:writeback") == expected
    assert parse_cfg("--cfg", r'ugid_map="a\"b:c,d",dax') == {"ugid_map": 'a"b:c,d', "dax": "true"}


def test_without_a_tag_the_directory_is_written_as_for_a_whole_machine() -> None:
    config = parse(
        ["--socket-path", "S", "--shared-dir",
         "/srv:data:type=fs:cache=always:uidmap=0 1000 1:gidmap=0 9 1:uid=5:gid=6:timeout=9"]
    )  # fmt: skip
    assert (config.shared_dir, config.tag, config.cache) == ("/srv", "data", "always")
    assert (config.uid_map, config.gid_map) == (((0, 1000, 1),), ((0, 9, 1),))
    assert (config.uid, config.gid, config.timeout) == (5, 6, 9)
    assert parsed("--shared-dir", "/with:colon").shared_dir == "/with:colon"


def test_options_of_their_own_win_over_words_of_the_directory() -> None:
    words = ["--fd=3", "--shared-dir", "/srv:data:uid=5:timeout=9", "--uid=7", "--cfg=timeout=1"]
    config = parse(words)
    assert (config.uid, config.timeout) == (7, 1)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--tag", "t", "--shared-dir", "D"], "--socket-path"),
        ([*BASE, "--socket-path", "S"], "give one"),
        (["--fd", "3", "--shared-dir", "D"], "--tag"),
        (["--fd", "3", "--tag", "t"], "--shared-dir"),
        ([*BASE, "--tag", "x" * 37], "1 to 36 bytes"),
        (["--fd", "3", "--shared-dir", "/srv:"], "1 to 36 bytes"),
        (["--fd", "3", "--shared-dir", "/srv:t:type=p9"], "type=p9"),
        (["--fd", "3", "--shared-dir", "/srv:t:"], "no ''"),
        ([*BASE, "--uid-map", "0 1"], "INSIDE OUTSIDE COUNT"),
        ([*BASE, "--uid-map", "0 1 0"], "no range"),
        ([*BASE, "--gid-map", "0 1 2,1 5 1"], "mapped twice"),
        ([*BASE, "--disable-sandbox", "--uid-map", "0 0 1"], "exclude"),
        ([*BASE, "--disable-sandbox", "--uid", "5"], "exclude"),
        ([*BASE, "--skip-pivot-root", "yes"], "true or false"),
        ([*BASE, "--allowlist-socket-path", ""], "name a path"),
        ([*BASE, "--cfg", ""], "no ''"),
        ([*BASE, "--cfg", "timeout=1,"], "no ''"),
        ([*BASE, "--cfg", "timeout=1,timeout=2"], "twice"),
        ([*BASE, "--cfg", "cache=metadata"], "never, auto, always"),
        ([*BASE, "--cfg", "timeout='1"], "no KEY=VALUE"),
        ([*BASE, "--cfg", "timeout=-1"], "timeout"),
        ([*BASE, "--cfg", "writeback=yes"], "true or false"),
        ([*BASE, "--cfg", "uid=0"], "no 'uid'"),
        ([*BASE, "--cfg", "dax=true"], "DAX"),
        ([*BASE, "--cfg", "unmap_guest_memory_on_fork"], "not implemented"),
        ([*BASE, "--cfg", "ascii_casefold,negative_timeout=1"], "exclude"),
        ([*BASE, "--cfg", "privileged_quota_uids="], "privileged_quota_uids"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(words: list[str], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert named in str(caught.value)


PIECES = st.sampled_from(
    ["timeout", "cache", "=", "=", ",", ":", "'", '"', "\\", "1", "never", "ugid_map", "writeback"]
)


@settings(deadline=None)
@given(st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join))
def test_any_text_is_words_or_one_error(text: str) -> None:
    for words in ([*BASE, "--cfg", text], ["--fd=3", "--shared-dir", text]):
        try:
            config = parse(words)
        except UsageError as error:
            assert str(error)
        else:
            assert config.tag
