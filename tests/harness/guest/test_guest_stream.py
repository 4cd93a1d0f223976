"""Cutting a command's output out of a port."""

from hypothesis import given
from hypothesis import strategies as st

from harness.guest.stream import MarkedStream

MARKER = b"abcabd"
chunks = st.lists(st.binary(max_size=8) | st.sampled_from([b"a", b"ab", b"abc", b"abcab"]))


@given(chunks, st.integers(1, 7))
def test_output_is_whole_however_it_is_cut_up(parts: list[bytes], size: int) -> None:
    output = b"".join(parts).replace(MARKER, b"")
    while MARKER in output:
        output = output.replace(MARKER, b"")
    wire = output + MARKER + b"next"
    end = wire.index(MARKER)
    got = bytearray()
    stream = MarkedStream(MARKER, got.extend)
    after = b""
    for start in range(0, len(wire), size):
        piece = wire[start : start + size]
        after += piece if stream.ended else stream.feed(piece)
    assert stream.ended
    assert bytes(got) == wire[:end]
    assert after == wire[end + len(MARKER) :]


def test_a_prompt_is_passed_on_at_once() -> None:
    got = bytearray()
    MarkedStream(MARKER, got.extend).feed(b"login: ")
    assert got == b"login: "


def test_only_what_may_begin_the_marker_is_withheld() -> None:
    got = bytearray()
    stream = MarkedStream(MARKER, got.extend)
    stream.feed(b"xabcab")
    assert got == b"x"
    stream.feed(b"c")
    assert got == b"xabc"
    stream.flush()
    assert got == b"xabcabc"
