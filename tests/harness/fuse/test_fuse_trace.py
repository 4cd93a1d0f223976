from __future__ import annotations

import logging

import pytest
from fuse_session import OP, ROOT, Session

from harness.fuse import abi
from harness.fuse.trace import TracingHandler, describe_request


def test_a_traced_request_is_one_line_as_strace_would_have_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Session() as session, caplog.at_level(logging.INFO):
        traced = TracingHandler(session.server)
        for name, body in (("LOOKUP", b"etc\0"), ("MKDIR", abi.MKDIR_IN.pack(0o755, 0) + b"etc\0")):
            request = memoryview(bytearray(session.request(OP[name], ROOT, body)))
            traced.handle([request], [memoryview(bytearray(144))], lambda length: None)
        lines = [record.getMessage() for record in caplog.records]
        assert lines[0].startswith(f'#{session.unique - 2} LOOKUP node=1 "etc" uid=0 = ENOENT <')
        assert lines[1].startswith(
            f'#{session.unique} MKDIR node=1 mode=0o755 "etc" uid=0 = ok 128 <'
        )


@pytest.mark.parametrize("name", sorted(OP))
def test_every_kind_of_request_can_be_described(name: str) -> None:
    with Session() as session:
        for body in (b"", bytes(200)):
            text = describe_request([memoryview(session.request(OP[name], 5, body))])
            assert name in text and "node=5" in text
    assert describe_request([]) == "a request of 0 bytes"
