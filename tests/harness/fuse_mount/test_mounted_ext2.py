"""An image as the host's kernel sees it through us, beside the tree that it was made of."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.fuse


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Each path below ``root`` with what it is and holds."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes(), status.st_nlink
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if name.startswith("user.")
        }
        row = (oct(status.st_mode), status.st_uid, int(status.st_mtime), content, attributes)
        found[str(path.relative_to(root))] = row
    return found


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_an_image_shows_the_tree_that_it_was_made_of(
    kind: str, tmp_path: Path, mount_daemon: Callable[..., object]
) -> None:
    tree = tmp_path / "tree"
    (tree / "directory" / "below").mkdir(parents=True)
    for number in range(300):
        (tree / "directory" / f"{number} {'x' * (number % 50)}").write_bytes(b"%d" % number)
    (tree / "large").write_bytes(os.urandom(3 << 20))
    (tree / "hard").hardlink_to(tree / "large")
    (tree / "link").symlink_to("directory/below")
    try:
        os.setxattr(tree / "large", "user.colour", b"blue")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    image = tmp_path / "image"
    command = ["mke2fs", "-q", "-t", kind, "-O", "^has_journal", "-d", str(tree), str(image), "16M"]
    subprocess.run(command, check=True, capture_output=True)
    mountpoint = tmp_path / "mounted"
    mountpoint.mkdir()
    with mount_daemon(mountpoint, "--mount", f"type=ext2,src={image},dst=/"):
        found = listing(mountpoint)
        del found["lost+found"]
        assert found == listing(tree)
        with pytest.raises(OSError) as caught:
            (mountpoint / "new").touch()
        assert caught.value.errno == errno.EROFS
