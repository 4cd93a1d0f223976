"""virtiofsd and crosvm's vhost-user fs device: their command lines and their life as a process.

Reading order: ``config`` (what both command lines come to), ``arguments`` (virtiofsd's words) and
``crosvm`` (crosvm's), ``seams`` (a config as options of the sandbox and the mount),
``life`` (sockets, pid file, systemd, syslog), ``daemon``, which runs one, and ``libvirt``.
"""
