"""The grammar of xattrmap and what its rules do; the examples are those of virtiofsd's manual."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsimpl.passthrough.xattrmap import (
    BAD,
    CLIENT,
    OK,
    PREFIX,
    REWRITE_SECURITY,
    SERVER,
    UNSUPPORTED,
    XattrMap,
    XattrRule,
)

BOTH = CLIENT | SERVER


def refused(names: XattrMap, name: bytes) -> int:
    with pytest.raises(OSError) as caught:
        names.client(name)
    assert caught.value.errno is not None
    return caught.value.errno


def test_every_attribute_gets_a_prefix() -> None:
    names = XattrMap.parse(":prefix:all::user.virtiofs.::bad:all:::")
    assert names.client(b"security.selinux") == b"user.virtiofs.security.selinux"
    assert names.server(b"user.virtiofs.security.selinux") == b"security.selinux"
    assert names.server(b"security.selinux") is None
    assert names.server(b"user.virtiofs.") is None


def test_trusted_attributes_get_a_prefix_and_the_others_pass() -> None:
    names = XattrMap.parse(
        "/prefix/all/trusted./user.virtiofs./"
        "/bad/server//trusted./"
        "/bad/client/user.virtiofs.//"
        "/ok/all///"
    )
    assert names.client(b"trusted.a") == b"user.virtiofs.trusted.a"
    assert names.server(b"user.virtiofs.trusted.a") == b"trusted.a"
    assert names.server(b"trusted.a") is None
    assert refused(names, b"user.virtiofs.trusted.a") == errno.EPERM
    assert names.client(b"user.a") == b"user.a"
    assert names.server(b"user.a") == b"user.a"


def test_security_attributes_are_hidden_and_the_rest_pass() -> None:
    names = XattrMap.parse("/bad/all/security./security./ /ok/all///")
    assert refused(names, b"security.selinux") == errno.EPERM
    assert names.server(b"security.selinux") is None
    assert names.client(b"user.a") == b"user.a"


def test_an_unsupported_attribute_is_hidden_and_says_so() -> None:
    names = XattrMap.parse(
        ":unsupported:all:system.posix_acl_access:system.posix_acl_access: :ok:all:::"
    )
    assert refused(names, b"system.posix_acl_access") == errno.EOPNOTSUPP
    assert names.server(b"system.posix_acl_access") is None
    assert names.server(b"system.other") == b"system.other"


@pytest.mark.parametrize(
    ("rule", "client", "server"),
    [
        (":prefix:client:trusted.:user.virtiofs.:", {b"trusted.a": b"user.virtiofs.trusted.a"}, {}),
        (":prefix:server::user.virtiofs.:", {}, {b"user.virtiofs.trusted.a": b"trusted.a"}),
        (
            ":prefix:all:trusted.:user.virtiofs.:",
            {b"trusted.a": b"user.virtiofs.trusted.a"},
            {b"user.virtiofs.trusted.a": b"trusted.a"},
        ),
        (":ok:client:user.::", {b"user.a": b"user.a"}, {}),
        (":ok:server::security.:", {}, {b"security.a": b"security.a"}),
        (":ok:all:::", {b"any.a": b"any.a"}, {b"any.a": b"any.a"}),
    ],
)
def test_one_rule_maps_in_its_scope_and_refuses_elsewhere(
    rule: str, client: dict[bytes, bytes], server: dict[bytes, bytes]
) -> None:
    names = XattrMap.parse(rule)
    for name, expected in client.items():
        assert names.client(name) == expected
    for name, expected in server.items():
        assert names.server(name) == expected
    if not client:
        assert refused(names, b"any.a") == errno.EPERM
    if not server:
        assert names.server(b"any.a") is None


def test_map_with_a_key_stands_for_three_rules() -> None:
    assert XattrMap.parse(":map:trusted.:user.virtiofs.:").rules == (
        XattrRule(PREFIX, BOTH, b"trusted.", b"user.virtiofs."),
        XattrRule(BAD, BOTH, b"user.virtiofs.", b"trusted."),
        XattrRule(OK, BOTH, b"", b""),
    )


def test_map_without_a_key_stands_for_two_rules() -> None:
    assert XattrMap.parse(":map::user.virtiofs.:").rules == (
        XattrRule(PREFIX, BOTH, b"", b"user.virtiofs."),
        XattrRule(BAD, BOTH, b"", b""),
    )


def test_the_first_rule_that_matches_decides() -> None:
    names = XattrMap.parse(":ok:all:user.:user.: :bad:all:user.a:user.a: :bad:all:::")
    assert names.client(b"user.a") == b"user.a"
    assert names.server(b"user.a") == b"user.a"


def test_each_rule_has_its_own_separator_and_space_may_stand_between() -> None:
    names = XattrMap.parse("\n  :ok:client:user.::\t,bad,all,,,  ")
    assert names.rules == (
        XattrRule(OK, CLIENT, b"user.", b""),
        XattrRule(BAD, BOTH, b"", b""),
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "without a rule"),
        (" \n", "without a rule"),
        (":", "type"),
        (":ok", "type"),
        (":nonsense:all:::", "no type 'nonsense'"),
        (":ok:everyone:::", "no scope 'everyone'"),
        (":ok:all::", "after the prepend"),
        (":ok:all", "scope"),
        (":map:a:b", "after the prepend"),
        (":map:all:a:b:", "rule 2"),
        (":map:a:b: :ok:all:::", "'map' must be the last rule"),
        (":map:a:b: :map:c:d:", "'map' must be the last rule"),
        (":ok:all::: /bad/all/", "rule 2"),
        (":OK:all:::", "no type 'OK'"),
    ],
)
def test_a_malformed_map_is_refused_and_the_rule_is_named(text: str, part: str) -> None:
    with pytest.raises(ValueError) as caught:
        XattrMap.parse(text)
    assert part in str(caught.value)


def test_the_capability_is_known_by_its_other_name_only_if_it_has_one() -> None:
    assert XattrMap.parse(":map::user.v.:").capability == b"user.v.security.capability"
    assert XattrMap.parse(":map:trusted.:user.v.:").capability is None
    assert XattrMap.parse(":bad:all:::").capability is None


def test_crosvms_rewriting_spares_the_hosts_label() -> None:
    names = REWRITE_SECURITY
    assert names.client(b"security.capability") == b"user.virtiofs.security.capability"
    assert names.server(b"user.virtiofs.security.capability") == b"security.capability"
    assert names.client(b"security.selinux") == b"security.selinux"
    assert names.server(b"security.selinux") == b"security.selinux"
    assert names.server(b"security.ima") is None
    assert refused(names, b"user.virtiofs.security.ima") == errno.EPERM
    assert names.client(b"user.a") == b"user.a"


_FIELD = st.text(
    st.characters(blacklist_characters="\0:/,|", blacklist_categories=["Cs"]), max_size=12
)
_RULES = st.lists(
    st.tuples(
        st.sampled_from([PREFIX, OK, BAD, UNSUPPORTED]),
        st.sampled_from([("client", CLIENT), ("server", SERVER), ("all", BOTH)]),
        _FIELD,
        _FIELD,
        st.sampled_from(":/,|"),
        st.sampled_from(["", " ", "\n\t"]),
    ),
    min_size=1,
    max_size=6,
)


@given(_RULES)
def test_what_is_written_is_what_is_parsed(
    rules: list[tuple[str, tuple[str, int], str, str, str, str]],
) -> None:
    text = "".join(
        f"{space}{d}{kind}{d}{word}{d}{key}{d}{prepend}{d}"
        for kind, (word, _), key, prepend, d, space in rules
    )
    assert XattrMap.parse(text).rules == tuple(
        XattrRule(kind, scope, key.encode(), prepend.encode())
        for kind, (_, scope), key, prepend, _, _ in rules
    )


_NAME = st.sampled_from([b"user.", b"trusted.", b"security.", b"user.virtiofs.", b"system."])
_NAMES = st.tuples(_NAME, st.binary(min_size=1, max_size=8)).map(b"".join)


@given(st.sampled_from(["", "trusted.", "security.", "user."]), _NAMES)
def test_a_name_that_a_map_lets_in_comes_back_as_itself(key: str, name: bytes) -> None:
    names = XattrMap.parse(f":map:{key}:user.virtiofs.:")
    try:
        mapped = names.client(name)
    except PermissionError:
        return
    assert names.server(mapped) == name


@given(st.sampled_from(["", "trusted.", "security."]), _NAMES)
def test_what_a_map_shows_under_the_clients_name_is_reached_by_it(key: str, name: bytes) -> None:
    names = XattrMap.parse(f":map:{key}:user.virtiofs.:")
    shown = names.server(name)
    if shown is not None and shown.startswith(key.encode()):
        assert names.client(shown) == name


@given(st.text(max_size=30))
def test_any_text_is_a_map_or_a_value_error(text: str) -> None:
    try:
        rules = XattrMap.parse(text).rules
    except ValueError:
        return
    assert rules


@given(_RULES, st.data())
def test_a_map_that_lacks_its_end_is_refused(
    rules: list[tuple[str, tuple[str, int], str, str, str, str]], data: st.DataObject
) -> None:
    kind, (word, _), key, prepend, d, _ = rules[0]
    rule = f"{d}{kind}{d}{word}{d}{key}{d}{prepend}{d}"
    cut = data.draw(st.integers(1, len(rule) - 1))
    with pytest.raises(ValueError):
        XattrMap.parse(rule[:cut])
