"""The differential test bed: one sequence of system calls, run on several targets, compared.

``step`` is a call as data, and the script that a person can read, save and run again. ``target`` is
what a sequence runs on; ``vfs_target`` (a VirtualFilesystem in this process) and ``linux_target``
(the kernel below us) are two. ``host_syscalls`` makes the kernel's calls, ``linux_agent`` is the
process that makes them. ``state`` is what can be observed of a target, ``mount_table`` its mounts;
``compare`` runs steps and reports the first difference, ``runner`` does it for a file.

``generate`` makes random sequences on files, ``generate_mounts`` on mounts (``generate_mount_fds``
by descriptors; ``mount_sequence`` is what they share, ``mount_model`` what they believe to exist).
Both decide by ``choices``; ``strategies`` lets hypothesis do it, for tests. ``campaign`` runs
sequences one after another and cuts differences down, which ``simplify`` then makes plainer;
``fuzz`` does it by several processes.
"""
