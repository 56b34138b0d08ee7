"""Token shards that change while a run reads them: they vanish, are replaced, cut off, lengthened, or get a token of V or more.

The run may go on with what it has; it may not train on something else without a word. If it cannot go on, it saves its last whole step and
ends with one line and the exit code 2. With its data back, it resumes to the same bits.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np

from dev.drills.checkpoints import expect_end, expect_one_line, expect_resumable, expect_same_bits, resumed_from
from dev.drills.planting import before_step
from dev.drills.report import Lost, Silent, Try
from dev.drills.training import SAMPLES, STEPS, B, T, V, train, write_data
from dev.drills.ways_to_damage import write_token
from gpt2_numba.data.token_shards import write_shard

SHARDS = [Path("data") / f"{name}.bin" for name in ("train_0", "train_1")]
EPOCH = 7  # steps


def _replace(tokens):
    """Replace a shard by another file of that name, as rsync and mv do."""

    def change(path):
        write_shard(path.with_suffix(".new"), tokens(SAMPLES[path.stem] * B * T + 1))
        os.replace(path.with_suffix(".new"), path)

    return change


def _overwrite(path):
    content = path.read_bytes()
    with open(path, "r+b") as file:  # in place: the same file
        file.truncate(0)
        file.write(content[: len(content) // 3])


def _becomes(make):
    def change(path):
        path.unlink()
        make(path)

    return change


CHANGES = {
    "vanish": Path.unlink,
    "are moved": lambda path: path.rename(path.with_suffix(".moved")),
    "are replaced by others of the same size": _replace(lambda count: np.arange(count) % V),
    "are replaced by shorter ones": _replace(lambda count: np.arange(count // 2) % V),
    "are replaced by longer ones": _replace(lambda count: np.arange(3 * count) % V),
    "are cut off in place": lambda path: os.truncate(path, path.stat().st_size // 2),
    "are emptied in place": lambda path: os.truncate(path, 0),
    "are cut off and written again": _overwrite,
    "are lengthened": lambda path: path.open("ab").write(bytes(100)),
    "get tokens of V": lambda path: [write_token(path, n, V) for n in range(SAMPLES[path.stem] * B * T)],
    "get tokens of 65535": lambda path: [write_token(path, n, 65535) for n in range(SAMPLES[path.stem] * B * T)],
    "get another header": lambda path: path.open("r+b").write(bytes(12)),
    "become directories": _becomes(Path.mkdir),
    "become FIFOs": _becomes(os.mkfifo),
}


def tries(scale):
    every = [(what, step) for what in CHANGES for step in range(STEPS)]
    some = scale.some(every, 14)
    return [
        *(Try(f"before step {step} the shards {what}", _midway(CHANGES[what], step, SHARDS)) for what, step in some),
        *(Try(f"before step {step} one of two shards does: {what}", _midway(CHANGES[what], step)) for what, step in scale.some(every, 7)),
        *(Try(f"the validation shard: they {what}", _validation(CHANGES[what])) for what in scale.some(CHANGES, 4)),
        *(Try(f"between two runs the shards {what}", _between(CHANGES[what])) for what in scale.some(CHANGES, 4)),
        Try("between two runs there is one more shard", _one_more),
    ]


def _midway(change, step, shards=None):
    """shards: all that change; None: one, at random."""

    def run(directory, rng):
        chosen = shards or [rng.choice(SHARDS)]
        ended = train(directory, prepare=lambda: before_step(step, lambda _: [change(path) for path in chosen]))
        _expect_saved(directory, ended)
        _restore(directory)
        expect_resumable(directory)

    return run


def _expect_saved(directory, ended):
    """It ended well, with the right bits; or with one line, after saving all the steps that it had reported."""
    expect_one_line(ended)
    if ended.code == 0:
        return expect_same_bits(directory)
    expect_end(ended, 2, "^error: .*|\nerror: .*")
    done = max(map(int, re.findall(r"^step +(\d+)/", ended.out, re.MULTILINE)), default=0)
    saved = max((int(path.name[5:]) for path in (directory / "log").glob("DONE_*")), default=0)
    if saved < done:
        raise Lost(f"{done} steps were done, and the newest checkpoint has {saved}: {ended}")


def _restore(directory):
    shutil.rmtree(directory / "data")
    write_data(directory)


def _validation(change):
    def run(directory, _rng):
        ended = train(directory, {"-v": 3}, lambda: before_step(4, lambda _: change(Path("data/val.bin"))))
        _expect_saved(directory, ended)
        _restore(directory)
        expect_resumable(directory)

    return run


def _half(directory):
    ended = train(directory, prepare=lambda: before_step(5, lambda _: os._exit(9)))
    if ended.code != 9:
        raise Lost(f"the first half of the run failed: {ended}")


def _between(change):
    """Refused, or told."""

    def run(directory, _rng):
        _half(directory)
        for path in SHARDS:
            change(directory / path)
        _expect_told(train(directory, {"-y": 1}))

    return run


def _expect_told(ended):
    expect_one_line(ended)
    if ended.code not in (0, 2):
        raise Lost(f"exit code {ended.code}: {ended}")
    if ended.code == 0 and not re.search("warning|what differs", ended.err + ended.out):
        raise Silent(f"it goes on with other data, without a word: {ended}")
    if ended.code == 0 and resumed_from(ended) != 4:
        raise Lost(f"it should resume after 4 steps: {ended}")


def _one_more(directory, _rng):
    _half(directory)
    shutil.copy(directory / SHARDS[0], directory / "data" / "train_2.bin")
    _expect_told(train(directory, {"-y": 1}))
