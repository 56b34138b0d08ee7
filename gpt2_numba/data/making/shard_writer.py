"""Writing shards token by token, so that a broken job loses nothing but its last seconds.

While it is written, a shard is called NAME_train_000003.bin.part. A full one gets its name: who trains on NAME_train_*.bin never sees half
of one. `save` puts all tokens on the disk, and then how many there are into NAME_progress.json, together with the place in the text that
they come from. The next job with the same name cuts the files back to that number and goes on; its shards are those of a job that was never
broken.

Validation shards come first, then the training shards. If the last of several shards would be less than half full, the last two share their
tokens: a short one might not hold a batch.
"""

import contextlib
import errno
import json
import os
import re
from pathlib import Path

import numpy as np

from gpt2_numba.data.file_header import HEADER_BYTES, HEADER_INTS
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.data.token_shards import MAGIC, VERSION
from gpt2_numba.data.tokenizer_record import write_json
from gpt2_numba.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two jobs that write the same shards are not noticed
    fcntl = None

SPLITS = ("val", "train")
COPIED_TOGETHER = 1 << 22  # bytes


class ShardWriter:
    """The shards DIRECTORY/NAME_val_000000.bin, ..., DIRECTORY/NAME_train_000000.bin, ...; a context manager.

    job   a dict that JSON can hold: what is made, and of what. Shards that another job has begun are not continued
    shard_size  tokens of a full shard

    Attributes: `tokens`, split -> tokens written so far; `place`, what `save` was last given, None in a new job. Raises UserError if the
    files cannot be written, if shards of this name exist that are not this job's, or if another process is writing them.
    """

    def __init__(self, directory, name, job, shard_size):
        self.directory, self.name, self.job, self.shard_size = Path(directory), name, job, shard_size
        self.tokens = dict.fromkeys(SPLITS, 0)
        self.place, self._val_closed, self._complete = None, False, False
        self._files, self._lock = {}, None
        self._progress = self.directory / f"{name}_progress.json"
        with self._as_user_error():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            try:
                if self._progress.exists():
                    self._load()
                else:
                    self._refuse_others()
                    self._save_progress()  # from here on, whatever has this name is of this job
            except BaseException:
                self._release_lock()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()
        self._files.clear()
        self._release_lock()

    @property
    def stem(self):
        """The path of the shards without "_train_000000.bin"."""
        return self.directory / self.name

    def write(self, split, tokens):
        """Append tokens (1-D uint16) to the split "val" or "train"; no "val" after "train"."""
        with self._as_user_error():
            while len(tokens):
                index, written = divmod(self.tokens[split], self.shard_size)
                part = tokens[: self.shard_size - written]
                self._open(split, index).write(part.astype("<u2").tobytes())
                self.tokens[split] += len(part)
                tokens = tokens[len(part) :]
                if written + len(part) == self.shard_size:
                    self._close(split, index, self.shard_size)

    def save(self, place, complete=False):
        """Put everything on the disk. place: JSON's, where the job goes on; complete: nothing comes after it."""
        with self._as_user_error():
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self.place, self._complete = place, complete
            self._save_progress()
            if not self._val_closed and (complete or self.tokens["train"]):
                self._finish_split("val")
                self._val_closed = True
                self._save_progress()

    def finish(self):
        """After save(complete=True): name the last shards. Returns {split: list of paths}."""
        with self._as_user_error():
            self._finish_split("train")
            return {split: self.shards(split) for split in SPLITS}

    def forget_progress(self):
        """The last thing of a job: from here on its shards are like any others."""
        with self._as_user_error():
            self._progress.unlink(missing_ok=True)

    def delete(self):
        """Delete everything that this job has written."""
        self.__exit__()
        records = [self._progress, self.stem.with_name(f"{self.name}_tokenizer.json")]
        for path in self._own_files() + records:
            with contextlib.suppress(OSError):
                path.unlink()

    @property
    def complete(self):
        """Whether a broken job had nothing left to do but to name its last shards."""
        return self._complete

    def shards(self, split):
        """The paths of the shards of a split that have their names, in order."""
        count = -(-self.tokens[split] // self.shard_size)
        return [path for path in (self._path(split, index) for index in range(count)) if path.exists()]

    # -------------------------------------------------------------------------------------------- one shard

    def _path(self, split, index):
        return self.directory / f"{self.name}_{split}_{index:06d}.bin"

    def _part(self, split, index):
        return self.directory / f"{self.name}_{split}_{index:06d}.bin.part"

    def _open(self, split, index):
        """The file of an unfinished shard, at its end."""
        if split not in self._files:
            path = self._part(split, index)
            file = self._files[split] = open_regular(path, "r+b" if path.exists() else "w+b")
            if file.seek(0, os.SEEK_END) == 0:
                file.write(_header(0))  # the number of tokens is not known yet
        return self._files[split]

    def _close(self, split, index, count):
        """Give a shard of `count` tokens its name."""
        file = self._files.pop(split, None) or open_regular(self._part(split, index), "r+b")
        with file:
            file.seek(0)
            file.write(_header(count))
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._part(split, index), self._path(split, index))

    def _finish_split(self, split):
        """Name the last shard, or divide the last two. It may be repeated: each step begins by asking whether it is done."""
        index, written = divmod(self.tokens[split], self.shard_size)
        part, last = self._part(split, index), self._path(split, index)
        if file := self._files.pop(split, None):
            file.close()
        if written == 0:
            return
        if index == 0 or 2 * written >= self.shard_size:
            if part.exists():
                self._close(split, index, written)
            return
        before = self._path(split, index - 1)
        second = (self.shard_size + written) // 2
        first = self.shard_size + written - second
        if not last.exists():
            _write_from(last, second, [(before, first, self.shard_size - first), (part, 0, written)])
        if before.stat().st_size != HEADER_BYTES + 2 * first:
            _write_from(before, first, [(before, 0, first)])
        part.unlink(missing_ok=True)

    # -------------------------------------------------------------------------------------------- the job

    def _save_progress(self):
        write_json(
            self._progress,
            {"job": self.job, "tokens": self.tokens, "place": self.place, "val_closed": self._val_closed, "complete": self._complete},
        )

    def _load(self):
        """Go back to what NAME_progress.json says."""
        try:
            saved = json.loads(self._progress.read_text(encoding="utf-8"))
            job, tokens = saved["job"], {split: int(saved["tokens"][split]) for split in SPLITS}
            place, val_closed, complete = saved["place"], bool(saved["val_closed"]), bool(saved["complete"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{self._progress}: it is damaged, so this job cannot go on. Delete it and the shards of this name") from error
        changed = [key for key in sorted({*job, *self.job}) if job.get(key) != self.job.get(key)]
        if changed:
            was = ", ".join(f"{key.replace('_', ' ')} {_short(job.get(key))} instead of {_short(self.job.get(key))}" for key in changed)
            raise UserError(
                f"{self._progress} is of a job that was not finished and differs ({was}): give its command again to finish it, or delete "
                f"the files {self.stem}_*, or choose another --name"
            )
        self.tokens, self.place, self._val_closed, self._complete = tokens, place, val_closed, complete
        for split in SPLITS:
            if not (complete or split == "val" and val_closed or split == "val" and tokens["train"]):
                self._cut_back(split)

    def _cut_back(self, split):
        """Remove the tokens that were written after the progress was saved."""
        index, written = divmod(self.tokens[split], self.shard_size)
        part, path = self._part(split, index), self._path(split, index)
        if path.exists() and not part.exists():  # it became full after that
            os.replace(path, part)
        for later in self._own_files(split):
            if later.name.partition(".")[0] > path.stem or later.suffix == ".part2":
                later.unlink()
        length = HEADER_BYTES + 2 * written
        if written and (not part.exists() or part.stat().st_size < length):
            raise UserError(f"{part}: it is missing or too short, so this job cannot go on. Delete the files {self.stem}_* and begin again")
        if part.exists():
            os.truncate(part, length) if written else part.unlink()

    def _own_files(self, split=None):
        """All shards that a job of this name has written, whole or not, of one split or of all."""
        pattern = rf"{re.escape(self.name)}_({split or '|'.join(SPLITS)})_[0-9]{{6,}}\.bin(\.part2?)?"
        return sorted(path for path in self.directory.iterdir() if re.fullmatch(pattern, path.name))

    def _refuse_others(self):
        for path in self._own_files():
            raise UserError(f"{path}: shards of this name exist already. Delete them, or choose another --out or --name")

    def _take_lock(self):
        """Released by the system when the process ends, however it ends."""
        if fcntl:
            self._lock = open_regular(self.directory / f".{self.name}.lock", "w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._lock.name)):
                    raise BlockingIOError  # the other process has just ended and removed the file
            except (BlockingIOError, FileNotFoundError):
                self._lock.close()
                self._lock = None
                raise UserError(f"another process is writing {self.stem}_*: wait for its end, or choose another --name") from None
            except OSError:  # a file system without locks
                pass

    def _release_lock(self):
        if self._lock:
            with contextlib.suppress(OSError):
                os.unlink(self._lock.name)
            self._lock.close()
            self._lock = None

    @contextlib.contextmanager
    def _as_user_error(self):
        """What the system refuses becomes a UserError."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            raise error if isinstance(error, UserError) else cannot_write(self.directory, error) from error


def cannot_write(directory, error):
    """The UserError for an output directory with which the system, or Python, has raised `error`."""
    reason = getattr(error, "strerror", None) or error
    return UserError(f"--out {directory}: must be a directory in which the files can be written: {reason}. Choose another --out or --name")


def _header(count):
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


def _write_from(path, count, pieces):
    """Write a shard of `count` tokens: of each (file, first, tokens) that many, from number `first` on. Renamed last."""
    new = path.with_name(f"{path.name}.part2")
    with open_regular(new, "wb") as out:
        out.write(_header(count))
        for source, first, tokens in pieces:
            with open_regular(source) as file:
                file.seek(HEADER_BYTES + 2 * first)
                left = 2 * tokens
                while left:
                    data = file.read(min(left, COPIED_TOGETHER))
                    if not data:
                        raise OSError(errno.EIO, f"{source.name} is too short")
                    out.write(data)
                    left -= len(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(new, path)


def _short(value):
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"
