"""Filesystem types below the VFS; each is a subpackage that can be read alone.

Start with ``tmpfs``, which keeps everything itself and so shows what every inode operation has to
do. Then ``passthrough``, which has a host directory do it, and where others change the tree too.
``ext2`` reads and makes disk images. ``pseudo`` is what trees of generated files are built from;
``proc``, which shows the tasks of a VirtualFilesystem, is one.
"""
