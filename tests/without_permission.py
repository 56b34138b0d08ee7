"""A directory that may not be entered, for root too."""

import os
from contextlib import contextmanager

import pytest

NOBODY = 65534


@contextmanager
def without_permission(directory):
    """Nobody may search `directory`, or read or write in it; root becomes nobody meanwhile."""
    root = os.geteuid() == 0
    directory.chmod(0)
    try:
        if root:
            try:
                os.seteuid(NOBODY)
            except OSError:
                pytest.skip("root may do everything here, and cannot become another user")
        yield
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o700)
