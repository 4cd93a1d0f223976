"""proc: the tasks of this VirtualFilesystem, and its sysctls, as files. Linux: fs/proc.

``access`` says who may look into whose task. ``base`` is what a directory that belongs to a task
has of its own; ``fd``, ``namespaces`` and ``mounts`` are parts of one, ``pid`` is the whole.
``sysctl`` is /proc/sys. ``filesystem`` has the root, the mount options and the type.
"""

from fsimpl.proc.filesystem import ProcType

__all__ = ["ProcType"]
