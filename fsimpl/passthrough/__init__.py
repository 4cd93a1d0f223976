"""A directory of the host, as a filesystem. Read in this order:

``oslib`` has the system calls that Python's ``os`` lacks. ``identity`` makes one thread act as the
caller for the length of one call. ``handle`` is what an inode is on the host: an O_PATH descriptor
and what can be done through it. ``file`` and ``directory`` are what is open, ``inode`` has the
inode's operations; ``filesystem`` is the type, its superblock, and the budget of descriptors.

What keeps a task inside: the VFS walks every path itself, one component at a time, so the host is
only ever asked for one name in one directory, by descriptor, with symlinks not followed. ``..``
never reaches the host, and a symlink, magic or not, is text. A file is opened for data through its
own O_PATH descriptor, so what is opened is what was looked up, whatever its name means by then.
"""

from fsimpl.passthrough.filesystem import PassthroughSuperblock, PassthroughType

__all__ = ["PassthroughSuperblock", "PassthroughType"]
