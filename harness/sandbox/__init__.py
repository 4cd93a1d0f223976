"""The sandbox of a daemon that serves a shared directory.

Reading order: ``errors``; ``options`` with ``capabilities``, ``idmaps`` and ``limits``; ``waiter``
(the processes around the daemon) and ``sandbox``, which enters it. ``bpf`` and ``seccomp`` make
filters, ``allowed`` is what the daemon may call, and ``collect`` a command that finds out what a
program does call.
"""

from __future__ import annotations

from harness.sandbox.errors import SandboxError
from harness.sandbox.options import SandboxOptions
from harness.sandbox.sandbox import Sandboxed, enter

__all__ = ["SandboxError", "SandboxOptions", "Sandboxed", "enter"]
