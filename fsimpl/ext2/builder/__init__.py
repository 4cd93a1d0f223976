"""Makes an ext2 image of a tree: a plan first, which has metadata and names where content is.

``errors``; ``files`` and ``tree``: what a source gives; ``host``, ``tasks`` and ``tar``: the
sources there are. ``options``, then the parts of an image: ``geometry`` (block groups),
``directories``, ``attributes``, ``block_map``; ``records`` numbers the inodes, ``build`` puts
everything together as a ``plan``, and ``image_file`` writes that to a file.
"""

from fsimpl.ext2.builder.build import build
from fsimpl.ext2.builder.errors import ImageError
from fsimpl.ext2.builder.host import HostSource
from fsimpl.ext2.builder.image_file import write_image
from fsimpl.ext2.builder.options import BLOCK_SIZE, BuildOptions
from fsimpl.ext2.builder.plan import ImagePlan, Piece
from fsimpl.ext2.builder.tar import TarSource
from fsimpl.ext2.builder.tasks import TaskSource

__all__ = [
    "BLOCK_SIZE",
    "BuildOptions",
    "HostSource",
    "ImageError",
    "ImagePlan",
    "Piece",
    "TarSource",
    "TaskSource",
    "build",
    "write_image",
]
