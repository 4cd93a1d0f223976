"""The virtqueue, as a device sees it and as a driver sees it.

`memory` maps the regions of a guest, which `sealing` keeps from shrinking where that can be, and
translates its addresses; `chain` walks a descriptor
chain into segments of that memory; `queue` is the device's half of a split ring, made of both, and
`packed` that of a packed one behind the same methods. `dirty_log` and `inflight` are memory shared
with the VMM in which a device notes what it writes, and what it has taken; `packed_inflight` is the
latter for packed rings. `driver` and
`packed_driver` are the driver's halves, for tests, benchmarks and clients without a guest.

Section numbers are those of the Virtual I/O Device (VIRTIO) specification, version 1.2.

Memory ordering. Ring indices are read and written as items of a memoryview cast to "H", which
CPython turns into one 16-bit load or store; nothing in between is a barrier. On x86 (TSO) loads
are not reordered with loads, nor stores with stores, so "entry before index" (2.7.13.3) holds by
program order. What x86 does reorder is a store with a later load of another address, and two
places depend on that order: publishing used.idx before reading used_event, and publishing
avail_event before looking at avail.idx again. Both call `fence`.
"""
