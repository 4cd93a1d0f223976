"""Outward: everything that talks to kernels, virtual machines and people.

Reading order: ``errors``, ``linux`` with ``syscall_numbers`` (system calls), and ``wire`` (what a
transport and a FUSE server agree on). ``fuse`` is the server: buffers in, buffers out, no
transport; its ``dev_fuse`` and ``host_mount`` mount it on this host. ``virtio`` reads and writes
rings in shared memory, ``vhost_user`` speaks to the virtual machine's monitor (and, in ``frontend``
and ``fuse_client``, plays the other end), ``virtiofs`` is the device made of both; ``sandbox``
confines who serves it, ``migration`` carries its session to another daemon, and ``virtiofsd`` is
the daemon with virtiofsd's and crosvm's options. ``mountspec`` and ``compose`` build the tree that
is served, ``guest`` boots a Linux on it, with images of ``pmem`` if asked, and ``container`` runs a
command of this host in it. ``testbed`` runs the same system calls here and on Linux and compares;
``fuzz`` plays hostile clients. ``inspect`` looks into a live VFS, ``control`` lets other processes
do so, ``shell`` people. ``cli`` is the ``dentry`` command.
"""
