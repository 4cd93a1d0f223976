"""`dentry virtiofsd`: virtiofsd's command line, also under the name `virtiofsd`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from typing import Final

from harness.virtiofsd import arguments as virtiofsd_arguments
from harness.virtiofsd import daemon, libvirt
from harness.virtiofsd.life import activated_socket

NAME: Final = "virtiofsd"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        NAME,
        help="serve a directory as virtiofsd does, with its options",
        description="Serve a host directory to one virtual machine, in virtiofsd's place. With a "
        "symbolic link named virtiofsd, the subcommand need not be given.",
        allow_abbrev=False,
    )
    virtiofsd_arguments.add_arguments(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Serve one virtual machine, or answer a question."""
    if given.print_capabilities:
        print(libvirt.capabilities())
        return 0
    if given.write_libvirt_json is not None:
        program = shutil.which(sys.argv[0]) or sys.argv[0]
        print(libvirt.write_description(given.write_libvirt_json, program))
        return 0
    activated = activated_socket(os.environ, os.getpid())
    return daemon.run(virtiofsd_arguments.config_of(given, activated=activated, euid=os.geteuid()))
