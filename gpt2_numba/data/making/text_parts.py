"""Text to be tokenized, however large: parts, which are read one after another, and units of work, about 1 MiB each.

    part   a text file, a .jsonl or .parquet file, or many small files together. `units()` reads it from its beginning, block by block
    unit   what a process tokenizes at a time. `pieces()` yields (begins, text): a document or, of a long document, a piece of it; `begins`
           tells whether a document begins there

The units of a part are always the same, so a broken job continues at any of them, and the number of processes changes nothing.

A long document is cut where GPT-2's tokenizer never joins two characters: between a letter, digit or sign and the blank or newline after
it. The tokens are then those of the whole document. Only a document of more than 4 MiB without such a place is cut anywhere.

Text files are UTF-8. A byte-order mark is dropped, and every line ends with "\\n". In .jsonl and .parquet each row is a document, as it is.
"""

import hashlib
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

BLOCK = 1 << 20  # bytes that are read at a time, and about the size of a unit
LARGEST_PIECE = 4 * BLOCK  # of a document that has no place for a cut
CHECKED_START = 4096  # bytes at the beginning of a file that show whether it is text
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar")
PARQUET_ROWS = 256  # that are read at a time


@dataclass(frozen=True)
class Split:
    """Where documents begin in a text file: after each `separator` (None: only at the beginning of the file).

    kept: the separator remains at the end of the document before it; otherwise it is dropped, with the white space around it.
    """

    separator: bytes | None = None
    kept: bool = False


WHOLE_FILES = Split()
BLANK_LINES = Split(b"\n\n", kept=True)  # as in llm.c's Tiny Shakespeare


def parse_split(text):
    """The Split that --split names: "file", "blank-line", or a separator, in which \\n and \\t are a newline and a tab."""
    if text == "file":
        return WHOLE_FILES
    if text == "blank-line":
        return BLANK_LINES
    separator = text.replace("\\n", "\n").replace("\\t", "\t").encode("utf-8", "replace")
    if not separator:
        raise UserError("--split must be file, blank-line or a text that separates documents, got an empty one: try '<|endoftext|>'")
    return Split(separator)


@dataclass(frozen=True)
class TextOptions:
    """How text is read. field: of a .jsonl or .parquet row; replace_invalid: bytes that are not UTF-8 become U+FFFD."""

    split: Split = WHOLE_FILES
    field: str = "text"
    replace_invalid: bool = False


# ------------------------------------------------------------------------------------------------ from paths to parts


def parts_of_paths(paths, options):
    """Parts for files and folders. Returns (parts, paths that were left out). Raises UserError for a path that is neither.

    Of a folder all files are read, in the order of their names, except hidden ones and those that are not text.
    """
    parts, left_out = [], []
    for path in paths:
        if os.path.isdir(path):
            files = []
            for file in _files_in(path):
                (files if file.suffix == ".parquet" or _looks_like_text(file) else left_out).append(file)
            parts += group_files(files, options)
        else:
            parts.append(part_of_file(path, options))
    return parts, left_out


def group_files(paths, options, validation=None):
    """Parts for many files: small text files next to each other share one. Empty files are dropped."""
    parts, small = [], []

    def close_group():
        if small:
            parts.append(SmallFiles(small, options, validation))
            small.clear()

    nbytes = 0
    for path in paths:
        size = _size(path)
        if size >= BLOCK or size and path.suffix in _RECORDS:
            close_group()
            parts.append(part_of_file(path, options, validation))
        elif size:
            nbytes = nbytes * bool(small) + size
            small.append(path)
            if nbytes >= BLOCK:
                close_group()
    close_group()
    return parts


def part_of_file(path, options, validation=None):
    """The part for one file, by its name's ending. Raises UserError if it cannot be read, or is empty."""
    if path.suffix in PACKED:
        raise UserError(f"{path}: a text must be unpacked, this file is packed ({path.suffix}): unpack it first")
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if size == 0:
        raise UserError(f"{path}: a text must have at least one character, this file is empty. Check the path")
    return _RECORDS.get(path.suffix, TextFile)(path, options, validation)


def _files_in(folder):
    """All files in a folder and its folders, in the order of their names, without hidden ones."""
    found = []
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(directory, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _looks_like_text(path):
    try:
        with open_regular(path) as file:
            start = file.read(CHECKED_START)
        text_start(path, start)
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4  # a character that the end of the sample has cut
    except (OSError, UserError):
        return False
    return b"\0" not in start


def _size(path):
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


# ------------------------------------------------------------------------------------------------ parts


class Part:
    """What is read as one: anything with these attributes and `units`.

    name, size, stamp   identify it for a job that goes on: text, bytes, and text that changes with the contents
    validation          True: it is for validation, False: for training, None: the command line decides
    """

    def __init__(self, name, paths, options, validation=None):
        self.name, self.paths, self.options, self.validation = str(name), paths, options, validation
        status = [os.stat(path) for path in paths]
        self.size = sum(each.st_size for each in status)
        times = [(os.path.abspath(path), each.st_mtime_ns) for path, each in zip(paths, status)]
        self.stamp = hashlib.sha256(repr(times).encode("utf-8", "surrogateescape")).hexdigest()

    def units(self):
        """Yield the units, in order."""
        raise NotImplementedError


class TextFile(Part):
    """A text file of any size."""

    def __init__(self, path, options, validation=None):
        super().__init__(path, [path], options, validation)

    def units(self):
        path, split, begins, position, rest = self.paths[0], self.options.split, True, 0, b""
        for end, block, ended in read_lines_ends(path):
            rest += block
            if len(rest) < BLOCK and not ended:
                continue
            cut, next_begins = (len(rest), True) if ended else place_to_cut(rest, split)
            if cut:
                yield TextUnit(end - (len(rest) - cut) - position, path, rest[:cut], begins, self.options)
                position, rest, begins = end - (len(rest) - cut), rest[cut:], next_begins


class JsonLines(Part):
    """A file of JSON objects, one a line."""

    def __init__(self, path, options, validation=None):
        super().__init__(path, [path], options, validation)

    def units(self):
        path, position, rest, line = self.paths[0], 0, b"", 1
        for end, block, ended in _read_blocks(path):
            rest += block
            cut = len(rest) if ended else rest.rfind(b"\n") + 1
            if cut:
                lines = rest[:cut]
                yield LinesUnit(end - (len(rest) - cut) - position, path, lines, line, self.options)
                position, rest, line = end - (len(rest) - cut), rest[cut:], line + lines.count(b"\n")


class Parquet(Part):
    """A Parquet file, read a row group after another, a few hundred rows at a time."""

    def __init__(self, path, options, validation=None):
        super().__init__(path, [path], options, validation)

    def units(self):
        path, field = self.paths[0], self.options.field
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise UserError(f"{path}: .parquet files are read with pyarrow, which is missing: pip install pyarrow") from error
        try:
            with ParquetFile(path) as file:
                if field not in file.schema_arrow.names:
                    raise UserError(f"{path}: {_no_field(field, file.schema_arrow.names)}")
                yield from self._units(file, max(1, file.metadata.num_rows))
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: a .parquet file must be whole and readable: {reason}. Copy or download it again") from error

    def _units(self, file, rows):
        texts, nbytes, position, done = [], 0, 0, 0
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=[self.options.field]):
                for text in batch.column(0).to_pylist():
                    done += 1
                    if text is not None and not isinstance(text, str):
                        raise UserError(
                            f"{self.name}: the field {self.options.field!r} must be text, got {type(text).__name__}: choose with --field"
                        )
                    texts.append(text or "")
                    nbytes += len(texts[-1])
                    if nbytes >= BLOCK:
                        yield RecordsUnit(self.size * done // rows - position, texts)
                        texts, nbytes, position = [], 0, self.size * done // rows
        if texts:
            yield RecordsUnit(self.size - position, texts)


class SmallFiles(Part):
    """Several text files, at least one document each. One unit, whose process reads the files."""

    def __init__(self, paths, options, validation=None):
        super().__init__(f"{paths[0]} and {len(paths) - 1} more", list(paths), options, validation)

    def units(self):
        yield FilesUnit(self.size, self.paths, self.options)


class Texts(Part):
    """Texts in memory, a document each."""

    def __init__(self, name, texts, validation=None):
        self.name, self.texts, self.validation = name, texts, validation
        self.size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        self.stamp = hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()

    def units(self):
        texts, nbytes = [], 0
        for text in self.texts:
            texts.append(text)
            nbytes += len(text.encode("utf-8", "replace"))
            if nbytes >= BLOCK:
                yield RecordsUnit(nbytes, texts)
                texts, nbytes = [], 0
        if texts:
            yield RecordsUnit(nbytes, texts)


_RECORDS = {".jsonl": JsonLines, ".ndjson": JsonLines, ".parquet": Parquet}


def place_to_cut(data, split):
    """(where a unit may end in `data`, whether a document begins there): the last such place; (0, ...) if there is none yet.

    Right after a separator or, if there is none in it, within the document, as the module's docstring explains.
    """
    if split.separator:
        *before, last = data.split(split.separator)
        if before:
            return len(data) - len(last), True
    searched = len(data) - max(0, len(split.separator or b"") - 1)  # the beginning of a separator stays with its end
    for blank in (b"\n", b" "):
        end = searched
        while (cut := data.rfind(blank, 1, end)) > 0:
            if not _ends_with_blank(data[max(0, cut - 4) : cut]):
                return cut, False
            end = cut
    if len(data) < LARGEST_PIECE:
        return 0, False
    cut = searched
    while data[cut - 1] & 0xC0 == 0x80:  # within a character
        cut -= 1
    return cut - 1, False


def _ends_with_blank(data):
    """Whether the last character of (the last bytes of) a UTF-8 text is white space."""
    return data.decode("utf-8", "ignore")[-1:].isspace()


# ------------------------------------------------------------------------------------------------ units


@dataclass(frozen=True)
class TextUnit:
    """Bytes of a text file with "\\n" line ends. size: how many bytes of the file it takes; begins: a document begins with it."""

    size: int
    path: Path
    data: bytes
    begins: bool
    options: TextOptions

    def pieces(self):
        return _split_documents(decode(self.data, self.path, self.options), self.options.split, self.begins)


@dataclass(frozen=True)
class LinesUnit:
    """Whole lines of a .jsonl file. first: number of the first line, from 1."""

    size: int
    path: Path
    data: bytes
    first: int
    options: TextOptions

    def pieces(self):
        for number, line in enumerate(self.data.split(b"\n"), self.first):
            if line.strip():
                text = self._text(number, decode(line, self.path, self.options))
                if text:
                    yield True, text

    def _text(self, number, line):
        field = self.options.field
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.path}, line {number}: each line must be a JSON object, got {line.strip()[:60]!r}. Mend or remove the line"
            ) from error
        if not isinstance(row, dict) or field not in row:
            names = row if isinstance(row, dict) else ()
            raise UserError(f"{self.path}, line {number}: {_no_field(field, names)}")
        if row[field] is not None and not isinstance(row[field], str):
            raise UserError(
                f"{self.path}, line {number}: the field {field!r} must be text, got {str(row[field])[:60]!r}: choose with --field"
            )
        return row[field]


@dataclass(frozen=True)
class RecordsUnit:
    """Texts, a document each."""

    size: int
    texts: list

    def pieces(self):
        return ((True, text) for text in self.texts if text)


@dataclass(frozen=True)
class FilesUnit:
    """Text files, read when they are tokenized."""

    size: int
    paths: list
    options: TextOptions

    def pieces(self):
        for path in self.paths:
            data = b"".join(block for _, block, _ in read_lines_ends(path))
            yield from _split_documents(decode(data, path, self.options), self.options.split, True)


def _split_documents(text, split, begins):
    """Yield (begins, text) of each document that is not empty."""
    if split.separator is None:
        if text:
            yield begins, text
        return
    separator = split.separator.decode("utf-8", "replace")
    documents = text.split(separator)
    for index, document in enumerate(documents):
        if split.kept:
            document += separator * (index < len(documents) - 1)
        elif begins or index:
            document = document.strip()
        else:
            document = document.rstrip()
        if document:
            yield begins or index > 0, document


def _no_field(field, names):
    known = ", ".join(map(repr, list(names)[:10]))
    return f"a row must have the field {field!r}, it has {known or 'no fields'}: choose with --field"


# ------------------------------------------------------------------------------------------------ reading


def read_lines_ends(path):
    """As _read_blocks, with every line ending in "\\n", and no block ending within "\\r\\n"."""
    held = b""
    for end, block, ended in _read_blocks(path):
        block = held + block
        held = b"\r" if block.endswith(b"\r") and not ended else b""
        block = block[: len(block) - len(held)]
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield end, block, ended


def _read_blocks(path):
    """Yield (bytes of the file read so far, block, whether it is the last) of a file's blocks, without a byte-order mark."""
    try:
        with open_regular(path) as file:
            end, block = 0, file.read(BLOCK)
            data = text_start(path, block)
            while True:
                end += len(block)
                following = file.read(BLOCK)
                yield end, data, not following
                if not following:
                    return
                block = data = following
    except OSError as error:
        raise _unreadable(path, error) from error


def text_start(path, start):
    """The first bytes of a text without a byte-order mark. Raises UserError if they are UTF-16 or UTF-32."""
    encoding = None
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        encoding = "UTF-32"
    elif start.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "UTF-16"
    else:  # without a mark: of Latin letters every second byte is 0
        sample = start[:CHECKED_START]
        even, odd, pairs = sample[::2].count(0), sample[1::2].count(0), len(sample) // 2
        if pairs and max(even, odd) > 0.4 * pairs and min(even, odd) < 0.05 * pairs:
            encoding = "UTF-16LE" if odd > even else "UTF-16BE"
    if encoding:
        raise UserError(f"{path}: a text must be UTF-8, this file is {encoding}. Convert it: {_conversion(path, encoding)}")
    return start.removeprefix(BYTE_ORDER_MARK)


def decode(data, path, options):
    """UTF-8 bytes of the file at `path` as text. Raises UserError if they are not UTF-8, unless the options say to replace them."""
    try:
        return data.decode("utf-8", "replace" if options.replace_invalid else "strict")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: a text must be UTF-8, byte number {_first_invalid_byte(path)} is not. Convert it, if it is Latin-1: "
            f"{_conversion(path, 'WINDOWS-1252')}; or add --replace-invalid"
        ) from error


def _first_invalid_byte(path):
    """The number, from 0, of the first byte of the file that is not UTF-8."""
    position, rest = 0, b""
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            data = rest + block
            try:
                data.decode("utf-8")
                rest = b""
            except UnicodeDecodeError as error:
                if error.end < len(data) or "unexpected end" not in error.reason:
                    return position + error.start
                rest = data[error.start :]
            position += len(data) - len(rest)
    return position


def _conversion(path, encoding):
    path = Path(path)
    new = path.with_name(f"{path.stem}_utf8{path.suffix}")
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"


def _unreadable(path, error):
    return UserError(f"{path}: a text must be a readable file: {error.strerror or error}. Check the path")
