"""The differential test bed: one sequence of system calls, run on several targets, compared.

``step`` is a call as data, and the script that a person can read, save and run again. ``target`` is
what a sequence runs on; ``vfs_target`` (a VirtualFilesystem in this process) and ``linux_target``
(the kernel below us) are two. ``host_syscalls`` makes the kernel's calls, ``linux_agent`` is the
process that makes them. ``state`` is what can be observed of a target, ``compare`` runs steps and
reports the first difference, ``runner`` does it for a file. ``generate`` makes sequences; it needs
hypothesis, which the package itself does not depend on.
"""
