"""ext2 images of directories for virtual machines, built by jailed processes in the background.

Reading order: ``wire`` (what is said between the two processes), ``filesystem`` (the image as the
one file of a mount), ``jail`` (what the building process may do), ``builder`` (that process),
``image`` (our end of it; ``launch`` starts one).

    with launch("/srv", BuildOptions(label=b"srv")) as image:
        ...  # meanwhile
        image.wait()
        image.size, image.mappings
"""

from harness.pmem.image import BuilderDied, Mapping, PmemImage, launch
from harness.pmem.wire import DESCRIPTORS_MAX

__all__ = ["DESCRIPTORS_MAX", "BuilderDied", "Mapping", "PmemImage", "launch"]
