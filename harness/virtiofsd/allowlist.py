"""The socket that tells a device which paths to share: crosvm's ``--allowlist-socket-path``."""

from __future__ import annotations

import json
import logging
import os
import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from fsimpl.passthrough.allowlist import PathAllowlist

LOG = logging.getLogger(__name__)

MESSAGE_MAX: Final = 1 << 20
"""Bytes of a message. A Unix socket takes less unless somebody has raised its limits."""

_COMMANDS: Final[dict[str, tuple[Callable[[PathAllowlist, list[bytes]], bytes | None], str]]] = {
    "AddPaths": (PathAllowlist.add, "{} leads out of the shared directory"),
    "RemovePaths": (PathAllowlist.remove, "{} is not on the list"),
}


def answer(allowlist: PathAllowlist, message: bytes) -> bytes:
    """Do what ``message`` says, whole or not at all; return what to say of it, both JSON:
    ``{"AddPaths": {"paths": ["/a", ...]}}`` or ``RemovePaths``, and ``"Ok"`` or ``{"Err": "..."}``.
    """
    try:
        command, paths = _parse(message)
    except (ValueError, RecursionError) as error:
        return _refusal(str(error) or "no JSON")
    change, complaint = _COMMANDS[command]
    bad = change(allowlist, paths)
    if bad is not None:
        return _refusal(complaint.format(bad.decode(errors="replace")))
    LOG.info("allow-list: %s %s", command, paths)
    return b'"Ok"'


def _refusal(reason: str) -> bytes:
    LOG.warning("allow-list: %s", reason)
    return json.dumps({"Err": reason}).encode()


def _parse(message: bytes) -> tuple[str, list[bytes]]:
    found: Any = json.loads(message)
    if not isinstance(found, dict) or len(found) != 1:
        raise ValueError('write {"AddPaths": {"paths": [...]}} or RemovePaths')
    ((command, arguments),) = found.items()
    if command not in _COMMANDS:
        raise ValueError(f"there is no command {command}")
    if not isinstance(arguments, dict) or arguments.keys() != {"paths"}:
        raise ValueError(f"{command} takes paths, and nothing else")
    paths = arguments["paths"]
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("paths is a list of texts")
    return command, [os.fsencode(path) for path in paths]


class AllowlistServer:
    """Answers whoever connects, several at a time, on a thread of its own until the process ends.

    It touches nothing but the list, whose changes are whole: the VFS needs no lock for it.
    """

    def __init__(self, listener: socket.socket, allowlist: PathAllowlist) -> None:
        """Takes over ``listener``, of type SOCK_SEQPACKET."""
        self._allowlist = allowlist
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._run, name="allowlist", daemon=True).start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    self._accept()
                else:
                    self._serve(sock)

    def _accept(self) -> None:
        with suppress(OSError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)

    def _serve(self, sock: socket.socket) -> None:
        try:
            message, _, flags, _ = sock.recvmsg(MESSAGE_MAX)
            if message:
                if flags & socket.MSG_TRUNC:
                    reply = _refusal(f"a message has {MESSAGE_MAX} bytes at most")
                else:
                    reply = answer(self._allowlist, message)
                sock.send(reply)
                return
        except BlockingIOError:
            # It does not read what it is told; or there was nothing after all.
            return
        except OSError as error:
            LOG.info("allow-list: a client is gone: %s", error.strerror)
        self._selector.unregister(sock)
        sock.close()
