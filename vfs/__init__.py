"""The VFS layer: names -> dentries -> inodes; mounts, namespaces, open files, credentials.

A reader can go through the files in this order and meet nothing before it is explained:

``abi`` the numbers; ``errors`` and ``wait``: how a call fails and how it waits; ``clock``;
``refs``: how lives are counted; ``ids``: small numbers. ``user_namespace`` and ``credentials``: who
asks, and where that counts. ``superblock``, ``inode``, ``dentry`` and ``file`` are the four objects
that a filesystem implements or hangs its own on; ``permission``, ``times`` and ``xattr`` are rules
about inodes. ``fs_context`` collects what a mount asks for, and ``fs_parser`` reads options.
``mount`` is one mount and its links to others, ``propagation`` what follows from them,
``mount_tree`` what is done to trees of mounts, ``namespace`` the tree that a task sees; ``rootfs``
lies under it, ``anon_inode`` and ``nsfs`` beside it. ``namei`` walks paths, ``dpath`` walks back,
``mountinfo`` prints tables of mounts. ``device`` and ``pipe`` are what special nodes open to;
``locks`` are record locks and flocks. ``operations`` does what calls do once their paths are known;
``fdtable`` numbers open files; ``syscalls`` are the calls, ``task`` is who makes them, and
``virtual_filesystem`` is the root object that holds everything.

**The lock.** ``VirtualFilesystem.lock`` guards every object here. System calls (``Task``'s methods)
(as ``Task.lock``, so that ``vfs.current`` is who calls) and transports take it; what they call
below needs it held and does not wait under it: an operation that would block raises ``WouldBlock``
with the queue to wait on. The one exception is a file whose ``unlocked_io`` is true: its read,
write and fsync run without the lock, because they wait for the host. Never take the lock from a
``WaitQueue`` callback that might run under another lock.
"""

from vfs.credentials import Credentials
from vfs.virtual_filesystem import VirtualFilesystem

__all__ = ["Credentials", "VirtualFilesystem"]
