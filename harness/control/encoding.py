"""Arguments and values of calls as JSON, and back.

Numbers, text, None, truth and lists are themselves, tuples are lists. Bytes are
``{"$bytes": base64}``; a named tuple is ``{"$": its class, "fields": {...}}``; a dictionary has
text for keys, none of which begins with ``$``.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from vfs.syscalls.attributes import Stat, StatfsResult, Statx
from vfs.syscalls.mount_query import Statmount
from vfs.syscalls.names import DirectoryRecord

PROTOCOL: Final = 1
"""The version of what is said on a control socket."""
_CLASSES: Final = {
    kind.__name__: kind for kind in (Stat, Statx, StatfsResult, Statmount, DirectoryRecord)
}
_PLAIN: Final = (str, int, float, bool, type(None))


def encode(value: Any) -> Any:
    """`value` as what json.dumps takes. Raises: TypeError for what has no form."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, tuple) and type(value).__name__ in _CLASSES:
        fields = zip(value._fields, value, strict=True)  # type: ignore[attr-defined]
        return {"$": type(value).__name__, "fields": {name: encode(item) for name, item in fields}}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def decode(value: Any) -> Any:
    """What `encode` made `value` of. Raises: ValueError for what it never makes."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$bytes" in value:
        try:
            return base64.b64decode(value["$bytes"], validate=True)
        except (TypeError, binascii.Error):
            raise ValueError("$bytes: this is no base64") from None
    if "$" in value:
        return _decode_tuple(value)
    return {key: decode(item) for key, item in value.items()}


def _decode_tuple(value: dict[str, Any]) -> Any:
    kind = _CLASSES.get(value["$"]) if isinstance(value["$"], str) else None
    fields = value.get("fields")
    if kind is None or not isinstance(fields, dict):
        raise ValueError(f"$: {value['$']!r} is no class that is known")
    try:
        return kind(**{name: decode(item) for name, item in fields.items()})
    except TypeError:
        raise ValueError(f"$: {value['$']} has other fields") from None
