"""What is sent to a target, as data: saved as JSON, sent again, cut down step by step."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from harness.testbed.choices import Choices

NODE: Final = "node"
HANDLE: Final = "handle"


class Ref(NamedTuple):
    """A number that the server gave out in the reply to step ``step``: the ``place``-th of its kind
    there. It stays right while other steps are left out.
    """

    kind: str
    step: int
    place: int = 0


Part = bytes | Ref


class Request(NamedTuple):
    """A FUSE request. ``body`` is put together from its parts, then each of ``edits`` replaces
    bytes from its first to its second number; ``length`` is added to what the header says.

    ``ids`` are the header's uid, gid, pid and total_extlen. The request is cut into segments at
    ``cuts``; ``reply`` has the lengths of the reply's.
    """

    number: int
    opcode: int
    nodeid: int | Ref
    body: tuple[Part, ...]
    unique: int
    reply: tuple[int, ...]
    cuts: tuple[int, ...] = (40,)
    ids: tuple[int, int, int, int] = (0, 0, 0, 0)
    length: int = 0
    edits: tuple[tuple[int, int, bytes], ...] = ()


class Deed(NamedTuple):
    """Something that others do meanwhile: the host in the shared directory, a task in the tree."""

    number: int
    name: str
    args: tuple[str | int, ...] = ()


class Message(NamedTuple):
    """Bytes on a socket, with descriptors of these kinds."""

    number: int
    data: bytes
    fds: tuple[str, ...] = ()


class Scribble(NamedTuple):
    """Bytes that a guest writes at a place of its memory."""

    number: int
    place: int
    data: bytes


Step = Request | Deed | Message | Scribble


class Case(NamedTuple):
    """A target's settings and what is done to it."""

    target: str
    settings: Mapping[str, Any]
    steps: tuple[Step, ...]


class Outcome(NamedTuple):
    """What one case came to. ``inputs`` counts what was sent, ``answers`` by kind and errno."""

    case: Case
    inputs: int
    answers: Counter[tuple[str, str]]
    failure: str = ""


class Fuzzer(Protocol):
    """Makes cases for one target, and runs them, one after another in one process."""

    def run(self, choices: Choices, inputs: int) -> Outcome:
        """Make a case of about ``inputs`` inputs and run it; what is made may depend on answers."""
        ...

    def replay(self, case: Case) -> Outcome:
        """Run a case as it is."""
        ...

    def close(self) -> None:
        """Give back what the process holds for it."""
        ...


_STEPS: Final[dict[str, Callable[..., Step]]] = {
    kind.__name__: kind for kind in (Request, Deed, Message, Scribble)
}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, Ref):
        return {"ref": list(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _made(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"]) if "hex" in value else Ref(*value["ref"])
    if isinstance(value, list):
        return tuple(_made(item) for item in value)
    return value


def dump(case: Case, comment: str) -> str:
    """``case`` as JSON, one step a line."""
    lines = [
        json.dumps([type(step).__name__, *(_plain(field) for field in step)]) for step in case.steps
    ]
    head = json.dumps({"target": case.target, "settings": dict(case.settings), "comment": comment})
    return head[:-1] + ', "steps": [\n' + ",\n".join(lines) + "\n]}\n"


def load(text: str) -> Case:
    """What ``dump`` wrote. Raises: ValueError."""
    try:
        data = json.loads(text)
        steps = tuple(_STEPS[name](*map(_made, fields)) for name, *fields in data["steps"])
        return Case(data["target"], data["settings"], steps)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no case: {error!r}") from None
