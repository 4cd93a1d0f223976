"""The words of `--mount`."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.mountspec import parse_mount_spec
from vfs import abi


def test_tmpfs_with_size_keeps_the_size_as_an_option_of_the_filesystem() -> None:
    spec = parse_mount_spec("type=tmpfs,dst=/tmp,size=64m")
    assert (spec.type, spec.destination, spec.source, spec.flags) == ("tmpfs", "/tmp", None, 0)
    assert spec.options == (("size", "64m"),)


def test_readonly_passthrough_has_source_and_flag() -> None:
    spec = parse_mount_spec("type=passthrough,src=/srv,dst=/srv,ro")
    assert (spec.source, spec.flags, spec.options) == ("/srv", abi.MS_RDONLY, ())


@pytest.mark.parametrize("source", ["src", "source"])
@pytest.mark.parametrize("destination", ["dst", "destination", "target"])
@pytest.mark.parametrize("read_only", ["ro", "readonly", "readonly=true", "ro=1"])
def test_long_and_short_keys_mean_the_same(source: str, destination: str, read_only: str) -> None:
    spec = parse_mount_spec(f"type=passthrough,{source}=/a,{destination}=/b,{read_only}")
    assert spec[1:] == ("passthrough", "/b", "/a", abi.MS_RDONLY, ())


def test_a_flag_can_be_denied() -> None:
    assert parse_mount_spec("type=tmpfs,dst=/,ro=false,nodev").flags == abi.MS_NODEV


def test_every_flag_of_mount_is_known() -> None:
    words = "ro,nosuid,nodev,noexec,noatime,nodiratime,relatime,nosymfollow"
    assert parse_mount_spec(f"type=tmpfs,dst=/,{words}").flags == (
        abi.MS_RDONLY
        | abi.MS_NOSUID
        | abi.MS_NODEV
        | abi.MS_NOEXEC
        | abi.MS_NOATIME
        | abi.MS_NODIRATIME
        | abi.MS_RELATIME
        | abi.MS_NOSYMFOLLOW
    )


def test_a_quoted_field_may_hold_commas_and_doubled_quotes() -> None:
    spec = parse_mount_spec('type=passthrough,"src=/a,b""c",dst=/d')
    assert spec.source == '/a,b"c'


def test_a_value_may_hold_equals_signs() -> None:
    assert parse_mount_spec("type=passthrough,src=/a=b,dst=/").source == "/a=b"


def test_bytes_that_are_no_utf8_pass_through_the_source() -> None:
    assert parse_mount_spec("type=passthrough,src=/\udcff,dst=/").source == "/\udcff"


@pytest.mark.parametrize("written", ["/a/b", "//a/b", "/a//b/", "/a/./b"])
def test_destination_is_normalized(written: str) -> None:
    assert parse_mount_spec(f"type=tmpfs,dst={written}").destination == "/a/b"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no type"),
        ("type=tmpfs", "no dst"),
        ("dst=/tmp", "no type"),
        ("type=,dst=/tmp", "'type' needs a value"),
        ("type=tmpfs,dst", "'dst' needs a value"),
        ("type=tmpfs,dst=tmp", "not absolute"),
        ("type=tmpfs,dst=/a/../b", "'..'"),
        ("type=tmpfs,dst=/a,,size=1", "empty field"),
        ("type=tmpfs,dst=/a,target=/b", "'dst' is given twice"),
        ("type=tmpfs,dst=/a,size=1,size=2", "'size' is given twice"),
        ("type=tmpfs,dst=/a,ro=perhaps", "'ro' is a flag"),
        ('type=tmpfs,"dst=/a', "quotes"),
        ('type=tmpfs,"dst=/a"b', "quotes"),
    ],
)
def test_a_malformed_spec_is_refused_in_one_line_that_names_it(text: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mount_spec(text)
    message = str(caught.value)
    assert named in message
    assert f"--mount {text or repr('')}" in message
    assert "\n" not in message
