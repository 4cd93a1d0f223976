"""`dentry do`: a command of this host in namespaces of its own, on a tree over /dev/fuse.

Read errors, user_namespace, tree (what the command finds), network, command (the end
of the line), init (pid 1), server, monitor (the process that the user started, and the whole).
"""
