"""The system calls, a module a family, each a base class of ``vfs.task.Task``.

Read ``base`` first (what all of them use), then ``open_close``, ``read_write``, ``attributes``,
``names`` and ``mounts``; ``process`` is about the task itself. Methods carry the names and the
argument order of Linux's calls; paths are ``str``, ``bytes`` or ``os.PathLike``, results are Python
values, errors are OSError.
"""
