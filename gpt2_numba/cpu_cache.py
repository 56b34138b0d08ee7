"""`njit_cached`: functions compiled for the processor and kept on disk where that is possible.

Numba's `njit(cache=True)` raises an exception, some of them on import, where no directory is writable (a container without a home), where
the disk is full, and where a file is damaged or belongs to somebody else. Here the function is then compiled in every process, which takes
a second or two.
"""

import contextlib
import os

from numba import config, njit
from numba.core.caching import FunctionCache


class _OptionalCache(FunctionCache):
    """Numba's cache, which it may be impossible to read or write."""

    def load_overload(self, *arguments):
        try:
            return super().load_overload(*arguments)
        except Exception:  # a damaged file may raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, *arguments):
        with contextlib.suppress(Exception):
            super().save_overload(*arguments)


def njit_cached(**options):
    """As numba.njit(cache=True, **options), but the cache is optional."""

    def compile_when_called(function):
        dispatcher = njit(**options)(function)
        if _has_a_home():
            with contextlib.suppress(OSError, RuntimeError):  # no directory is writable
                dispatcher._cache = _OptionalCache(function)
        return dispatcher

    return compile_when_called


def cache_directory(function):
    """Where the machine code of a function decorated with njit_cached is kept, or None."""
    return function._cache.cache_path


def _has_a_home():
    """Is Numba told or able to find where to put its cache? Without a home it would make a directory called `~`."""
    return bool(config.CACHE_DIR or os.path.isabs(os.path.expanduser("~")) or os.environ.get("XDG_CACHE_HOME"))
