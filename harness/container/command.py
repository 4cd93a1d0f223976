"""The process that becomes the command."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from errno import ENOEXEC
from typing import Final, NamedTuple, NoReturn

from harness import linux
from harness.container.errors import EXIT_OURS, tell
from harness.container.user_namespace import Identity, drop_capabilities

LOG = logging.getLogger(__name__)

EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127


class Command(NamedTuple):
    """What to run and how. Without `directory`, in `fallback` where the tree has it, or in `/`."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    directory: str | None
    fallback: str
    new_session: bool


def become(command: Command, identity: Identity, mask: frozenset[int]) -> NoReturn:
    """Be the command, in a fresh child of pid 1; `mask` is the signal mask that it starts with."""
    status = EXIT_OURS
    try:
        if command.new_session:
            os.setsid()
        _restore_signals(mask)
        _assume(identity)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        environment = {**command.environment, "PWD": _change_directory(command)}
        status = _execute(command.words, environment)
    except OSError as error:
        tell(f"can't start the command: {error.strerror}")
    except ChangeDirectoryError as error:
        tell(str(error))
    except BaseException:
        LOG.exception("the command was not started")
    finally:
        os._exit(status)


class ChangeDirectoryError(Exception):
    """The directory that was asked for is not there."""


def _restore_signals(mask: frozenset[int]) -> None:
    """Undo what Python and pid 1 have set; what was ignored when we were started stays ignored."""
    ours = {signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals():
        if number in ours or callable(signal.getsignal(number)):
            with suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _assume(identity: Identity) -> None:
    if identity.every_id:
        if not identity.keep_groups:
            os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    # Root inside keeps what it needs to be one; it counts in its user namespace only.
    if identity.uid != 0:
        drop_capabilities()


def _change_directory(command: Command) -> str:
    if command.directory is not None:
        try:
            os.chdir(command.directory)
        except OSError as error:
            message = f"--chdir {command.directory}: {error.strerror}"
            raise ChangeDirectoryError(message) from None
        return os.getcwd()
    try:
        os.chdir(command.fallback)
    except OSError:
        os.chdir("/")
        return "/"
    return command.fallback


def _execute(words: tuple[str, ...], environment: Mapping[str, str]) -> int:
    """Execute, looking through PATH as execvp(3) does; return the status of a failure."""
    name = words[0]
    places = [name]
    if "/" not in name:
        path = environment.get("PATH", os.defpath)
        places = [os.path.join(directory or ".", name) for directory in path.split(":")]
    failure: OSError | None = None
    for place in places:
        try:
            os.execve(place, words, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            # A directory of PATH that we may not search has nothing for us.
            if os.path.exists(place):
                failure = failure or error
        except OSError as error:
            failure = error
            if error.errno == ENOEXEC:
                # A script without a first line that says whose.
                with suppress(OSError):
                    os.execve("/bin/sh", ("/bin/sh", place, *words[1:]), environment)
            break
    if failure is None:
        tell(f"{name}: not found")
        return EXIT_NOT_FOUND
    tell(f"{name}: {failure.strerror}")
    return EXIT_NOT_EXECUTABLE
