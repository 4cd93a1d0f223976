"""What can go wrong with a guest, told apart by who can mend it."""

from __future__ import annotations

from harness.errors import CommandError


class GuestUnavailable(CommandError):
    """No guest can be started here as asked: something to install, or an argument to change.

    The message is one line for the person at the terminal and says what to do.
    """


class GuestError(CommandError):
    """A guest was started and went wrong. Base of the classes below.

    `console` is the end of the guest kernel's console, for the person who has to find out why.
    """

    exit_status = 125

    def __init__(self, message: str, console: str = "") -> None:
        super().__init__(message)
        self.console = console

    def __str__(self) -> str:
        message: str = self.args[0]
        if not self.console:
            return message
        return f"{message}\nthe guest's console ended with:\n{self.console}"


class GuestFailed(GuestError):
    """The guest's init could not get as far as running commands, for instance no such tag."""


class GuestPanicked(GuestError):
    """The guest's kernel panicked."""


class GuestStopped(GuestError):
    """The guest shut down or restarted while a command was running or awaited."""


class QemuDied(GuestError):
    """QEMU ended by a signal, or with an error of its own."""


class GuestQuit(GuestError):
    """The person at the terminal ended the guest, by Ctrl-A x."""


class GuestTimeout(GuestError):
    """The guest, or a command in it, took longer than the caller allowed."""
