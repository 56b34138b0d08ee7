"""Files damaged between two runs: flipped bits, cut off, lengthened, zeroed, swapped, deleted.

A damaged checkpoint is passed over with a warning, and the run resumes from the one before it, to the same bits; a damaged model file or
token shard is refused in one line. Not all damage can be found: llm.c's model files and shards have no checksums, so that another number
in a model file, or another token below V, is as legal as the right one. Their headers, sizes, and values that no run writes are damaged.
"""

import functools
import shutil
import struct
import tempfile
from pathlib import Path

from dev.drills.checkpoints import expect_end, expect_one_line, expect_same_bits, resumed_from
from dev.drills.file_operations import kill, on, plant
from dev.drills.questions import write_questions
from dev.drills.report import Lost, Silent, Try
from dev.drills.training import SAMPLES, B, T, V, train
from dev.drills.ways_to_damage import DAMAGE, HEADER_BYTES, HEADER_DAMAGE, write_token

OLDER, NEWEST = 6, 8  # steps of the checkpoints that are damaged
KINDS = {"model": f"model_{NEWEST:08d}.bin", "state": f"state_{NEWEST:08d}_00000.bin", "outliers": f"outliers_{NEWEST:08d}.json",
         "DONE": f"DONE_{NEWEST:08d}"}  # fmt: skip


def tries(scale):
    checkpoints = [(kind, how) for how in DAMAGE for kind in KINDS]
    headers = [(which, how) for how in HEADER_DAMAGE for which in ("model", "shard")]
    return [
        *(_checkpoint_try(kind, how) for kind, how in scale.some(checkpoints, 16)),
        *_repeated(scale.random(320, short=4), checkpoints, _checkpoint_try),
        *(Try(f"{kind} deleted", _checkpoint_file(kind, lambda path, _: path.unlink())) for kind in KINDS),
        *(Try(f"{kind} of two steps swapped", _swapped(kind)) for kind in KINDS),
        Try("every DONE deleted", _without_done),
        *_repeated(scale.random(140, short=8), headers, _header_try),
        *(Try("a token of V or more in a shard", _wrong_token) for _ in range(scale.random(20, short=2))),
        *(
            Try(f"a model file with {value}", _not_finite(value))
            for value in ("nan", "inf", "-inf")
            for _ in range(scale.random(5, short=1))
        ),
        *_repeated(scale.random(40, short=3), list(DAMAGE), lambda how: Try(f"questions: {how}", _questions(DAMAGE[how]))),
        *_repeated(scale.random(30, short=2), list(DAMAGE), lambda how: Try(f"main.log: {how}", _main_log(DAMAGE[how]))),
    ]


def _checkpoint_try(kind, how):
    return Try(f"a checkpoint's {kind}: {how}", _checkpoint_file(kind, DAMAGE[how]))


def _header_try(which, how):
    return Try(f"a {which}'s header or size: {how}", _input_file(which, HEADER_DAMAGE[how]))


def _repeated(count, items, make):
    """`count` tries, from the items in turn."""
    for n in range(count):
        item = items[n % len(items)]
        yield make(*item) if isinstance(item, tuple) else make(item)


# ------------------------------------------------------------------------------------------------------------- checkpoints


@functools.cache
def _interrupted_run():
    """The directory of a training that was killed with two complete checkpoints."""
    kept = tempfile.TemporaryDirectory(prefix="drill_")  # deleted with the cache, at the end
    directory = Path(kept.name)
    train(directory, prepare=lambda: plant(directory / "log", on(("open", "write"), kill, f"*{NEWEST + 2:08d}*")))
    if sorted(int(path.name[5:]) for path in (directory / "log").glob("DONE_*")) != [OLDER, NEWEST]:
        raise Lost("the training that is to be damaged has other checkpoints than those of steps 6 and 8")
    return kept


def _copy(directory):
    shutil.copytree(_interrupted_run().name, directory, dirs_exist_ok=True)


def _checkpoint_file(kind, damage):
    def run(directory, rng):
        _copy(directory)
        path = directory / "log" / KINDS[kind]
        damage(path, rng)
        _resume(directory)

    return run


def _resume(directory, may_refuse=False):
    """Resume with damaged files: from the older checkpoint with a warning, or with harmless damage; to the same bits either way.

    A checkpoint without DONE looks like one that was never finished: a line about it is enough.
    """
    ended = train(directory, {"-y": 1})
    expect_one_line(ended)
    if may_refuse and ended.code == 2:
        return
    if ended.code != 0:
        raise Lost(f"the checkpoint of step {OLDER} was intact, and the run did not resume from it: {ended}")
    expect_same_bits(directory)
    if resumed_from(ended) == OLDER and not ended.err and "but no DONE" not in ended.out:
        raise Silent(f"resumed from the older checkpoint without a word: {ended}")
    if resumed_from(ended) not in (OLDER, NEWEST):
        raise Lost(f"the run began from the beginning: {ended}")


def _swapped(kind):
    def run(directory, _rng):
        _copy(directory)
        newest = directory / "log" / KINDS[kind]
        older = newest.with_name(newest.name.replace(f"{NEWEST:08d}", f"{OLDER:08d}"))
        contents = newest.read_bytes(), older.read_bytes()
        older.write_bytes(contents[0])
        newest.write_bytes(contents[1])
        _resume(directory, may_refuse=True)

    return run


def _without_done(directory, _rng):
    """Nothing can be resumed from; but what is there must not be emptied, nor passed over without a word."""
    _copy(directory)
    log = directory / "log" / "main.log"
    before = log.read_bytes()
    for path in (directory / "log").glob("DONE_*"):
        path.unlink()
    ended = train(directory, {"-y": 1})
    expect_one_line(ended)
    kept = [path for path in directory.rglob("main.log*") if path.read_bytes().startswith(before)]
    if not kept:
        raise Silent(f"main.log of the earlier run is gone: {ended}")
    if "no DONE" not in ended.err + ended.out:
        raise Silent(f"begins from the beginning beside model and state files without a word: {ended}")


# --------------------------------------------------------------------------------------------------------- files that are read


def _input_file(which, damage):
    def run(directory, rng):
        _copy(directory)
        if which == "model":
            path = directory / "model.bin"
            shutil.copy(directory / "log" / KINDS["model"], path)
        else:
            path = directory / "data" / rng.choice(("train_0.bin", "train_1.bin", "val.bin"))
        damage(path, rng)
        expect_refused(directory, {"-e": "model.bin"} if which == "model" else {})

    return run


def expect_refused(directory, changes):
    shutil.rmtree(directory / "log")
    expect_end(train(directory, changes), 2, r"error: .*\S")


def _wrong_token(directory, rng):
    _copy(directory)
    name = rng.choice(("train_0", "train_1"))
    path = directory / "data" / f"{name}.bin"
    write_token(path, rng.randrange(SAMPLES[name] * B * T), rng.randrange(V, 65536))
    expect_refused(directory, {"-v": 2})


def _not_finite(value):
    def run(directory, rng):
        _copy(directory)
        path = directory / "model.bin"
        shutil.copy(directory / "log" / KINDS["model"], path)
        with open(path, "r+b") as file:
            file.seek(rng.randrange(HEADER_BYTES, path.stat().st_size, 4))
            file.write(struct.pack("<f", float(value)))
        expect_refused(directory, {"-e": "model.bin"})

    return run


def _questions(damage):
    """Refused, or read as other questions that are legal: their tokens have no checksum."""

    def run(directory, rng):
        write_questions(directory / "questions.bin")
        damage(directory / "questions.bin", rng)
        ended = train(directory, {"-h": 1, "--eval-file": "questions.bin", "-x": 2, "-n": 0, "-v": 1})
        expect_end(ended, (0, 2), "error: |HellaSwag: ")

    return run


def _main_log(damage):
    """The run goes on, and draws what can be read."""

    def run(directory, rng):
        _copy(directory)
        damage(directory / "log" / "main.log", rng)
        ended = train(directory, {"-y": 1}, picture=True)
        expect_end(ended, 0)
        expect_same_bits(directory)

    return run
