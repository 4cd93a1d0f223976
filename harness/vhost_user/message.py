"""vhost-user messages: ids, payload layouts, feature bits, and what each request looks like."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

HEADER: Final = struct.Struct("=III")
"""Request, flags, payload size. Native byte order, as all of the protocol."""

VERSION: Final = 1
VERSION_MASK: Final = 3
REPLY: Final = 4
NEED_REPLY: Final = 8

U64: Final = struct.Struct("=Q")
VRING_STATE: Final = struct.Struct("=II")
"""Ring index, number."""
VRING_ADDRESS: Final = struct.Struct("=IIQQQQ")
"""Ring index, flags, then the user addresses of desc, used, avail; the log's guest address."""
MEMORY_TABLE: Final = struct.Struct("=II")
"""Number of regions, padding; the regions follow."""
MEMORY_REGION: Final = struct.Struct("=QQQQ")
"""Guest address, size, user address, offset in the file."""
SINGLE_REGION: Final = struct.Struct("=QQQQQ")
"""Padding and a region."""
CONFIG: Final = struct.Struct("=III")
"""Offset, size, flags; the bytes follow."""

LOG: Final = struct.Struct("=QQ")
"""Size, offset in the file."""
INFLIGHT: Final = struct.Struct("=QQHH")
"""Size, offset in the file, number of queues, size of a queue."""
DEVICE_STATE: Final = struct.Struct("=II")
"""Direction, phase."""

RING_INDEX_MASK: Final = 0xFF
NO_FD: Final = 0x100
CONFIG_MAX: Final = 256
MAX_PAYLOAD: Final = 4096
MAX_FDS: Final = 8
MAX_MEMORY_SLOTS: Final = 509

VRING_F_LOG: Final = 1
"""In the flags of VRING_ADDRESS: the log's address counts."""

SAVE: Final = 0
LOAD: Final = 1
STATE_ERROR: Final = 1
STATE_NO_FD: Final = 0x100

STATUS_DRIVER_OK: Final = 4
STATUS_NEEDS_RESET: Final = 0x40

VHOST_F_LOG_ALL: Final = 1 << 26
VIRTIO_RING_F_INDIRECT_DESC: Final = 1 << 28
VIRTIO_RING_F_EVENT_IDX: Final = 1 << 29
VHOST_USER_F_PROTOCOL_FEATURES: Final = 1 << 30
VIRTIO_F_VERSION_1: Final = 1 << 32
VIRTIO_F_RING_PACKED: Final = 1 << 34

F_MQ: Final = 1 << 0
F_LOG_SHMFD: Final = 1 << 1
F_REPLY_ACK: Final = 1 << 3
F_BACKEND_REQ: Final = 1 << 5
F_CONFIG: Final = 1 << 9
F_BACKEND_SEND_FD: Final = 1 << 10
F_INFLIGHT_SHMFD: Final = 1 << 12
F_RESET_DEVICE: Final = 1 << 13
F_INBAND_NOTIFICATIONS: Final = 1 << 14
F_CONFIGURE_MEM_SLOTS: Final = 1 << 15
F_STATUS: Final = 1 << 16
F_DEVICE_STATE: Final = 1 << 19

GET_FEATURES: Final = 1
SET_FEATURES: Final = 2
SET_OWNER: Final = 3
RESET_OWNER: Final = 4
SET_MEM_TABLE: Final = 5
SET_LOG_BASE: Final = 6
SET_LOG_FD: Final = 7
SET_VRING_NUM: Final = 8
SET_VRING_ADDR: Final = 9
SET_VRING_BASE: Final = 10
GET_VRING_BASE: Final = 11
SET_VRING_KICK: Final = 12
SET_VRING_CALL: Final = 13
SET_VRING_ERR: Final = 14
GET_PROTOCOL_FEATURES: Final = 15
SET_PROTOCOL_FEATURES: Final = 16
GET_QUEUE_NUM: Final = 17
SET_VRING_ENABLE: Final = 18
SET_BACKEND_REQ_FD: Final = 21
GET_CONFIG: Final = 24
SET_CONFIG: Final = 25
GET_INFLIGHT_FD: Final = 31
SET_INFLIGHT_FD: Final = 32
RESET_DEVICE: Final = 34
GET_MAX_MEM_SLOTS: Final = 36
ADD_MEM_REG: Final = 37
REM_MEM_REG: Final = 38
SET_STATUS: Final = 39
GET_STATUS: Final = 40
SET_DEVICE_STATE_FD: Final = 42
CHECK_DEVICE_STATE: Final = 43

BACKEND_CONFIG_CHANGE: Final = 2
"""A request of the backend's, on a socket of its own."""


class RequestRow(NamedTuple):
    """What a request must look like.

    `size` is that of the payload, or of its fixed head if `variable`. `fds` is the number of
    descriptors that may come with it. `feature` must have been acknowledged.
    """

    name: str
    size: int
    fds: int = 0
    feature: int = 0
    variable: bool = False


REQUESTS: Final[dict[int, RequestRow]] = {
    GET_FEATURES: RequestRow("get_features", 0),
    SET_FEATURES: RequestRow("set_features", 8),
    SET_OWNER: RequestRow("set_owner", 0),
    RESET_OWNER: RequestRow("reset_owner", 0),
    SET_MEM_TABLE: RequestRow("set_mem_table", 8, fds=MAX_FDS, variable=True),
    SET_LOG_BASE: RequestRow("set_log_base", 16, fds=1, feature=F_LOG_SHMFD),
    SET_LOG_FD: RequestRow("set_log_fd", 0, fds=1, feature=F_LOG_SHMFD),
    SET_VRING_NUM: RequestRow("set_vring_num", 8),
    SET_VRING_ADDR: RequestRow("set_vring_addr", 40),
    SET_VRING_BASE: RequestRow("set_vring_base", 8),
    GET_VRING_BASE: RequestRow("get_vring_base", 8),
    SET_VRING_KICK: RequestRow("set_vring_kick", 8, fds=1),
    SET_VRING_CALL: RequestRow("set_vring_call", 8, fds=1),
    SET_VRING_ERR: RequestRow("set_vring_err", 8, fds=1),
    GET_PROTOCOL_FEATURES: RequestRow("get_protocol_features", 0),
    SET_PROTOCOL_FEATURES: RequestRow("set_protocol_features", 8),
    GET_QUEUE_NUM: RequestRow("get_queue_num", 0, feature=F_MQ),
    SET_VRING_ENABLE: RequestRow("set_vring_enable", 8),
    SET_BACKEND_REQ_FD: RequestRow("set_backend_req_fd", 0, fds=1, feature=F_BACKEND_REQ),
    GET_CONFIG: RequestRow("get_config", 12, feature=F_CONFIG, variable=True),
    SET_CONFIG: RequestRow("set_config", 12, feature=F_CONFIG, variable=True),
    # A C structure of these fields, as QEMU sends it, is padded to 24 bytes.
    GET_INFLIGHT_FD: RequestRow("get_inflight_fd", 20, feature=F_INFLIGHT_SHMFD, variable=True),
    SET_INFLIGHT_FD: RequestRow(
        "set_inflight_fd", 20, fds=1, feature=F_INFLIGHT_SHMFD, variable=True
    ),
    RESET_DEVICE: RequestRow("reset_device", 0, feature=F_RESET_DEVICE),
    GET_MAX_MEM_SLOTS: RequestRow("get_max_mem_slots", 0, feature=F_CONFIGURE_MEM_SLOTS),
    ADD_MEM_REG: RequestRow("add_mem_reg", 40, fds=1, feature=F_CONFIGURE_MEM_SLOTS),
    # The specification lets a frontend send the region's descriptor along; it is closed.
    REM_MEM_REG: RequestRow("rem_mem_reg", 40, fds=1, feature=F_CONFIGURE_MEM_SLOTS),
    SET_STATUS: RequestRow("set_status", 8, feature=F_STATUS),
    GET_STATUS: RequestRow("get_status", 0, feature=F_STATUS),
    SET_DEVICE_STATE_FD: RequestRow("set_device_state_fd", 8, fds=1, feature=F_DEVICE_STATE),
    CHECK_DEVICE_STATE: RequestRow("check_device_state", 0, feature=F_DEVICE_STATE),
}
