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
        return open(path, mode, opener=_open_at_once, **options)
    except ValueError as error:  # a NUL byte, or a character that file names cannot have here
        raise OSError(errno.EINVAL, f"not a possible path ({error})", str(path)) from error


def _open_at_once(path, flags):
    """A descriptor of a regular file. What else it may be is asked after it is open: in between, another could take its name."""
    try:
        descriptor = os.open(path, flags & ~os.O_TRUNC | getattr(os, "O_NONBLOCK", 0), 0o666)  # a pipe does not wait for its other end
        file_type = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if file_type == stat.S_IFREG:
            if flags & os.O_TRUNC:
                os.truncate(descriptor, 0)
            return descriptor
        os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.EISDIR):  # a pipe without a reader; a directory
            raise
        file_type = stat.S_IFIFO if error.errno == errno.ENXIO else stat.S_IFDIR
    raise OSError(errno.EINVAL, f"it is {FILE_TYPES.get(file_type, 'something else')}, not a regular file", str(path))
