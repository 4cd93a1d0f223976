"""A directory of the host, as a filesystem. Read in this order:

``oslib`` has the system calls that Python's ``os`` lacks. ``identity`` makes one thread act as the
caller for the length of one call. ``handle`` is what an inode is on the host: an O_PATH descriptor
and what can be done through it, or the file handle to get one by; ``descriptors`` is the budget.
``xattrmap`` and ``idmap`` translate names of attributes and ids, ``policy`` is what transports are
told, ``options`` reads all of it from the mount; ``xattrs`` and ``casefold`` apply it. ``ioctls``
are those that the host is asked. ``file`` and ``directory`` are what is open, ``inode`` has the
inode's operations. ``allowlist``, ``owner_rules`` and ``dynamic`` are about paths, which the inodes
of ``placed`` know. ``filesystem`` is the type and its superblock.

What keeps a task inside: the VFS walks every path itself, one component at a time, so the host is
only ever asked for one name in one directory, by descriptor, with symlinks not followed. ``..``
never reaches the host, and a symlink, magic or not, is text. A file is opened for data through its
own O_PATH descriptor, so what is opened is what was looked up, whatever its name means by then.
"""

from fsimpl.passthrough.filesystem import PassthroughSuperblock, PassthroughType
from fsimpl.passthrough.policy import ExportPolicy

__all__ = ["ExportPolicy", "PassthroughSuperblock", "PassthroughType"]
