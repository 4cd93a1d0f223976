"""vhost-user: the socket on which a VMM hands a device its memory and its rings.

`message` has the numbers and layouts; `connection` frames messages and owns the descriptors that
travel with them; `pool` has the threads for requests that block; `vring` is one ring of the device
and serves it; `loop` is the thread that serves all rings and the socket; `channel` is the socket
for what the backend asks, `state` the transfer of a device's state; `backend` is the protocol's
state machine, made of these. `frontend` is the other end, a VMM and a driver in one; `fuse_client`
speaks FUSE through it.

"The specification" here is "Vhost-user Protocol", docs/interop/vhost-user.rst of QEMU.
"""
