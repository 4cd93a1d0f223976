"""Hostile clients: random requests, rings and messages, and what must hold whatever they send.

Read in this order. ``case`` is what is sent, as data that can be saved, cut down and sent again.
``requests`` makes sequences of FUSE requests (from ``words``) that know the protocol well enough to
break it; ``fuse`` sends them to a FuseServer in this process and judges each reply, ``threads`` by
several threads at once. ``virtio`` does it for ``rings`` in memory that another process scribbles
at, ``vhost_user`` for the socket of a device in a process of its own; ``ext2`` mounts damaged
images, and ``state`` is the other end of a migration. ``campaign`` runs one of them for long, by
several processes (``isolation`` keeps those from doing harm), and cuts down what it finds;
``python -m harness.fuzz`` is its command line.
"""
