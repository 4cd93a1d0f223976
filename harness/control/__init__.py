"""A VFS as its users outside see it: the same calls on one in this process and on a daemon's.

To be read in this order: ``encoding``, values as JSON; ``kernel``, what can be asked, and
`LocalKernel`, which answers; ``server``, the control socket of a daemon; ``client``,
`RemoteKernel`.
docs/control.md has the protocol.
"""
