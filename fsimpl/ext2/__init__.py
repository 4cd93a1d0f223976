"""ext2 images: made of any tree, without copying what is in its files, and read.

Read ``layout.py`` (what is on the disk), ``hashes.py`` (of directory indexes) and ``xattrs.py``
(extended attributes and ACLs) first: both halves use them. ``builder`` makes images.
"""
