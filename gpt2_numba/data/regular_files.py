"""Opening a file that a user named: a regular file, or an OSError that says in a few words what else it is."""

import errno
import os
import stat

FILE_TYPES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path, mode="rb", **options):
    """open(path, mode, **options) for a regular file, or one that does not exist yet if `mode` writes.

    Opening a pipe waits for another program, and a device may never end. Raises OSError, always with a `strerror`, for these, for whatever
    the system refuses, and for a path that cannot be one.
    """
    try:
        _refuse_other_types(path, writing="w" in mode)
        return open(path, mode, **options)
    except ValueError as error:  # a NUL byte, or a character that file names cannot have here
        raise OSError(errno.EINVAL, f"not a possible path ({error})", str(path)) from error


def _refuse_other_types(path, writing):
    try:
        file_type = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        if writing:
            return
        raise
    if file_type != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {FILE_TYPES.get(file_type, 'something else')}, not a regular file", str(path))
