"""Room on a disk for what is going to be written."""

import shutil
from pathlib import Path


def free_bytes(directory):
    """Free space of the disk of a directory, which need not exist yet. Raises OSError."""
    directory = Path(directory).absolute()
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free
