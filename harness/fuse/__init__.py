"""The FUSE server, and /dev/fuse as one way to it.

In an order in which nothing is used before it is explained: ``abi`` (the wire), ``buffers``,
``cache`` (what a client may keep), ``identity`` (who asks), ``nodes`` and ``handles`` (what a
session holds), ``parking`` (what waits), ``request`` (what a handler gets), the handlers by family
(``session``, ``files``, ``locking``, ``directories``, ``names``, ``attributes``), ``opcodes`` (the
table of them) with ``support`` (the table as documentation), ``server``, ``trace``; then
``host_mount`` and ``dev_fuse``, the transport to the host's own kernel.
"""
