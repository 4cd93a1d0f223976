"""docs/control.md: its conversation, word for word."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

from harness.compose import Tree
from harness.control.server import OPERATIONS, controlled
from harness.fuse.server import FuseServer

PAGE = Path(__file__).parents[3] / "docs" / "control.md"


def agrees(shown: Any, found: Any) -> bool:
    """Whether they are equal, where "..." stands for anything."""
    if shown == "...":
        return found is not None or shown == found
    if isinstance(shown, dict) and isinstance(found, dict):
        return shown.keys() == found.keys() and all(agrees(shown[k], found[k]) for k in shown)
    return bool(shown == found)


def test_the_conversation_of_the_page_takes_place(tmp_path: Path) -> None:
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    lines = "".join(blocks).splitlines()
    used = set()
    path = str(tmp_path / "control")
    with Tree([]) as tree:
        server = FuseServer(tree.vfs, tree.root)
        with (
            controlled(path, tree.task, server, lambda: 0),
            socket.socket(socket.AF_UNIX) as sock,
        ):
            sock.settimeout(60)
            sock.connect(path)
            with sock.makefile("rb") as replies:
                for line in lines:
                    direction, text = line[:2], line[2:]
                    if direction == "> ":
                        used.add(json.loads(text)["op"])
                        sock.sendall(text.encode() + b"\n")
                    else:
                        assert direction == "< ", line
                        found = json.loads(replies.readline())
                        assert agrees(json.loads(text), found), f"{text}\n{json.dumps(found)}"
    assert used - {"no such"} == set(OPERATIONS)
