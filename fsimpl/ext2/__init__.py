"""ext2 images: made of any tree, without copying what is in its files, and read.

Read ``layout.py`` (what is on the disk), ``hashes.py`` (of directory indexes) and ``xattrs.py``
(extended attributes and ACLs) first: both halves use them. ``builder`` makes images.

The reader: ``image.py`` (where bytes come from), ``options.py``, ``geometry.py`` (the superblock,
judged), ``blocks.py`` (where a file's blocks are), ``attributes.py``, ``inode.py``, ``file.py``,
``tree.py`` (the index of a directory), ``directory.py``, ``iget.py``; then ``filesystem.py``, the
type ``ext2``. Whatever a disk holds, what is wrong gives EUCLEAN or EIO, and the log says where.
"""

from fsimpl.ext2.filesystem import Ext2Superblock, Ext2Type

__all__ = ["Ext2Superblock", "Ext2Type"]
