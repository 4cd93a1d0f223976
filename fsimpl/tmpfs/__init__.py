"""Files in memory, as Linux's tmpfs has them (mm/shmem.c).

Read ``limits.py`` (what a mount may use), ``ranges.py`` and ``store.py`` (a file's bytes, held
sparsely) and ``xattrs.py``; then ``file.py``, ``inode.py`` and ``directory.py`` (the operations);
then ``options.py`` and ``filesystem.py`` (what is mounted), and ``image.py`` (what is on it, as
records).
"""

from fsimpl.tmpfs.filesystem import TmpfsSuperblock, TmpfsType

__all__ = ["TmpfsSuperblock", "TmpfsType"]
