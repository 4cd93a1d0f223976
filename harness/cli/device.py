"""`dentry device fs`: the command line of crosvm's vhost-user devices, of which there is one."""

from __future__ import annotations

import argparse
import os

from harness.virtiofsd import crosvm, daemon


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "device",
        help="serve a directory as crosvm's device fs does, with its options",
        description="Serve a vhost-user device to one virtual machine, in crosvm's place.",
    )
    devices = parser.add_subparsers(metavar="DEVICE", required=True)
    fs = devices.add_parser("fs", help="a virtio-fs device", allow_abbrev=False)
    crosvm.add_arguments(fs)
    fs.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Serve one virtual machine."""
    return daemon.run(crosvm.config_of(given, euid=os.geteuid(), egid=os.getegid()))
