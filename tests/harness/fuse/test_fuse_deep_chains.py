"""References along chains that are longer than Python's stack."""

from __future__ import annotations

from fuse_session import ROOT, Session


def test_a_deep_chain_of_deleted_directories_is_forgotten_from_the_top() -> None:
    """Each is held by the one below it, so the last FORGET lets them all go."""
    with Session() as session:
        live = dict(session.vfs.ledger.live)
        chain = [ROOT]
        for _ in range(2000):
            chain.append(session.mkdir(chain[-1], b"d").nodeid)
        for nodeid in reversed(chain[:-1]):
            session.call("RMDIR", nodeid, b"d\0")
        for nodeid in chain[1:]:
            session.forget(nodeid)
        assert dict(session.vfs.ledger.live) == live
