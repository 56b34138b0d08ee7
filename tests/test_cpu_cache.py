"""Machine code for the processor is kept on disk where that is possible, and nothing depends on it."""

import os
from pathlib import Path

import pytest
from numba import config
from numba.core.caching import CacheImpl, UserProvidedCacheLocator

from gpt2_numba.cpu_cache import cache_directory, njit_cached
from tests.test_import_rule import source_files


def add_one(x):
    return x + 1


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The only place where Numba may keep code; returns its path."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(CacheImpl, "_locator_classes", [UserProvidedCacheLocator])
    return tmp_path / "cache"


def compiled():
    """add_one as another process would have it. Returns the function, called once, and whether its code came from the disk."""
    function = njit_cached(nogil=True)(add_one)
    assert function(1) == 2
    return function, bool(function.stats.cache_hits)


def files(cache, suffix):
    return list(cache.rglob(f"*{suffix}"))


def test_code_is_kept(cache):
    function, loaded = compiled()
    assert not loaded and Path(cache_directory(function)).parent == cache
    assert compiled()[1]


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_damaged_file_is_compiled_again(cache, suffix, content):
    compiled()
    files(cache, suffix)[0].write_bytes(content)
    assert not compiled()[1]
    assert compiled()[1]  # the file has been replaced


def test_a_file_that_cannot_be_read_or_replaced_is_no_error(cache):
    compiled()
    for file in files(cache, ".nbi"):
        file.unlink()
        file.mkdir()
    assert not compiled()[1]


def test_without_a_writable_directory_nothing_is_kept(cache, monkeypatch):
    (cache.parent / "file").write_text("")
    monkeypatch.setattr(config, "CACHE_DIR", str(cache.parent / "file" / "below"))
    function, _ = compiled()
    assert cache_directory(function) is None


def test_without_a_home_no_directory_is_called_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry in /etc/passwd
    function, _ = compiled()
    assert cache_directory(function) is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", source_files(), ids=lambda path: path.name)
def test_nothing_depends_on_numbas_own_cache(path):
    assert "@njit(cache=True" not in path.read_text(encoding="utf-8")
