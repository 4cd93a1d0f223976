"""What a tmpfs may use of something, and what it uses. Linux: the limits in ``shmem_sb_info``."""

from __future__ import annotations


class Limit:
    """Linux: ``max_blocks`` with ``used_blocks``, or ``max_inodes`` with ``free_ispace``.

    ``maximum`` 0 means no limit; use is counted all the same.
    """

    __slots__ = ("maximum", "used")

    def __init__(self, maximum: int = 0) -> None:
        self.maximum = maximum
        self.used = 0

    @property
    def free(self) -> int:
        """What is left; meaningless without a limit."""
        return self.maximum - self.used

    def take(self, amount: int) -> bool:
        """All of ``amount`` or nothing; whether it was taken."""
        used = self.used + amount
        if self.maximum and used > self.maximum:
            return False
        self.used = used
        return True

    def take_up_to(self, amount: int) -> int:
        """As much of ``amount`` as is left; returns what was taken."""
        if self.maximum:
            amount = min(amount, self.maximum - self.used)
        self.used += amount
        return amount

    def give(self, amount: int) -> None:
        self.used -= amount
