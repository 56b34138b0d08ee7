"""Prefetching: except for its speed, a prefetcher must behave exactly like its loader."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.prefetch import Prefetcher
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.errors import UserError

B, T = 2, 3


def make_loader(shuffle=True):
    shards = [np.arange(first, first + length, dtype=np.uint16) for first, length in [(0, 25), (1000, 19), (2000, 14)]]
    return DataLoader(shards, B, T, shuffle=shuffle)  # 4 + 3 + 2 samples


def take(source, batches):
    """All tokens of the next batches."""
    return np.array([source.next_batch() for _ in range(batches)])


@pytest.mark.parametrize("shuffle", [False, True])
def test_same_batches_as_the_loader(shuffle):
    with Prefetcher(make_loader(shuffle)) as prefetcher:
        np.testing.assert_array_equal(take(prefetcher, 30), take(make_loader(shuffle), 30))


def test_reads_one_batch_ahead():
    loader = make_loader()
    read = threading.Semaphore(0)
    next_batch = loader.next_batch

    def counted():
        batch = next_batch()
        read.release()
        return batch

    loader.next_batch = counted
    with Prefetcher(loader) as prefetcher:
        assert read.acquire(timeout=20)  # before the first call of next_batch
        prefetcher.next_batch()
        assert read.acquire(timeout=20)  # the second batch
        assert not read.acquire(timeout=0.05)  # but no third one


@pytest.mark.parametrize("batches", range(20))  # two epochs: also when the batch ahead begins a shard or an epoch
def test_state_is_that_before_the_next_batch(batches):
    expected = take(make_loader(), 40)
    with Prefetcher(make_loader()) as prefetcher:
        take(prefetcher, batches)
        state = prefetcher.state()
        take(prefetcher, 2)
        plain = make_loader()
        plain.load_state(state)
        np.testing.assert_array_equal(take(plain, 20), expected[batches : batches + 20])
        prefetcher.load_state(state)
        np.testing.assert_array_equal(take(prefetcher, 20), expected[batches : batches + 20])


@pytest.mark.parametrize("batches", [0, 4, 9, 18])  # 9: the batch read ahead has begun the next epoch
def test_reset_behaves_like_the_loaders(batches):
    plain = make_loader()
    take(plain, batches)
    plain.reset()
    with Prefetcher(make_loader()) as prefetcher:
        take(prefetcher, batches)
        prefetcher.reset()
        np.testing.assert_array_equal(take(prefetcher, 20), take(plain, 20))


def test_a_foreign_state_is_refused_and_nothing_is_lost():
    expected = take(make_loader(), 6)
    foreign = make_loader(shuffle=False).state()
    with Prefetcher(make_loader()) as prefetcher:
        take(prefetcher, 2)
        with pytest.raises(UserError, match="shuffling"):
            prefetcher.load_state(foreign)
        np.testing.assert_array_equal(take(prefetcher, 4), expected[2:])


def test_an_error_is_raised_with_its_batch(tmp_path):
    for name, first in [("a.bin", 0), ("b.bin", 100)]:
        write_shard(tmp_path / name, np.arange(first, first + 13))
    loader = DataLoader([tmp_path / "a.bin", tmp_path / "b.bin"], B, T)
    (tmp_path / "b.bin").write_bytes(b"gone")  # during the run
    with Prefetcher(loader) as prefetcher:
        assert take(prefetcher, 2)[1, 0, 0, 0] == 6
        for _ in range(2):  # a second call neither hangs nor skips the batch
            with pytest.raises(UserError, match="b.bin"):
                prefetcher.next_batch()
        prefetcher.reset()
        assert take(prefetcher, 1)[0, 0, 0, 0] == 0


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batches", range(1, 12))  # in a shard, after its end, after the end of an epoch
def test_after_an_error_the_state_is_that_before_its_batch(tmp_path, shuffle, batches):
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for path, length in zip(paths, [25, 19]):
        write_shard(path, np.arange(length))
    expected = take(DataLoader(paths, B, T, shuffle=shuffle), 40)
    contents = [path.read_bytes() for path in paths]
    read = 0
    with Prefetcher(DataLoader(paths, B, T, shuffle=shuffle)) as prefetcher:
        take(prefetcher, batches)
        prefetcher._pending.exception()  # the thread has read the next one
        for path in paths:
            path.write_bytes(b"damaged")
        with pytest.raises(UserError):
            while True:
                np.testing.assert_array_equal(prefetcher.next_batch(), expected[batches + read])
                read += 1
        state = prefetcher.state()
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    loader = DataLoader(paths, B, T, shuffle=shuffle)
    loader.load_state(state)
    np.testing.assert_array_equal(take(loader, 20), expected[batches + read :][:20])


def test_close_ends_the_thread():
    before = threading.active_count()
    with Prefetcher(make_loader()) as prefetcher:
        prefetcher.next_batch()
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


@pytest.mark.parametrize("end, code", [("", 0), ("raise KeyboardInterrupt", 130), ("raise ValueError", 1)])
def test_a_program_ends_without_close(end, code):
    program = (
        "import sys\nimport numpy as np\n"
        "from gpt2_numba.data.loader import DataLoader\nfrom gpt2_numba.data.prefetch import Prefetcher\n"
        "prefetcher = Prefetcher(DataLoader([np.arange(99, dtype=np.uint16)], 2, 3))\n"
        "prefetcher.next_batch()\n"
        f"try:\n    {end or 'pass'}\nexcept KeyboardInterrupt:\n    sys.exit(130)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, timeout=60).returncode == code
