"""Read what `python -m dev.kernels` prints on a GPU: a table with a line for every rung in every precision.

table = read_table(path)          the file may begin with a line `# COMMAND, one GPU, DATE, numba-cuda VERSION`
for row in table.rows_of("gelu_forward"): print(row.rung, row.share)
"""

from dataclasses import dataclass
from pathlib import Path

from gpt2_numba.errors import UserError

COLUMNS = ("function", "rung", "answer", "ms")  # of the header, among others
YOURS = "yours"  # the rung of a user's own file


@dataclass(frozen=True)
class Row:
    """A rung in one precision: a line of the table."""

    function: str  # name of the layer function
    rung: str  # plain, fast, or the name of a rung in between
    precision: str  # fp32, tf32 or bf16
    ms: float  # median of several launches
    gigabytes_per_second: float  # of the bytes that must be moved
    teraflops: float | None  # of matrix products; other functions have None
    share: float  # of the ceiling: 0.5 is half the rate of a copy or, of matmul and attention, of cuBLASLt's products


@dataclass(frozen=True)
class Table:
    """All rows, the user's own left out, and where and when they were measured."""

    where: str  # "NVIDIA H200, 2026-11-28, numba-cuda 0.30.4"; "" if the file does not say
    rows: tuple

    def rows_of(self, function):
        """The rows of a layer function, slowest rung first. Raises UserError if there are none."""
        rows = tuple(row for row in self.rows if row.function == function)
        if not rows:
            known = ", ".join(dict.fromkeys(row.function for row in self.rows))
            raise UserError(f"the function must be one of the table's, {known}, got {function!r}")
        return rows


def read_table(path):
    """The Table of a file. Raises UserError if it cannot be read or is no such table."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be a table that python -m dev.kernels printed, got: {error}") from error
    return parse_table(text, path)


def parse_table(text, name="the text"):
    """The Table that a text holds. `name` says what the text is in the message of a UserError."""
    lines = [line for line in text.splitlines() if line.strip()]
    title = lines.pop(0) if lines and lines[0].startswith("#") else ""
    if not lines or not set(COLUMNS) <= set(lines[0].split()):
        raise UserError(f"{name} must be a table that python -m dev.kernels printed on a GPU, with the columns {', '.join(COLUMNS)}")
    rows = (_row(line, name) for line in lines[1:] if not line.startswith("FAILED"))
    return Table(_where(title), tuple(row for row in rows if row.rung != YOURS))


def _row(line, name):
    try:
        function, rung, precision, _, ms, gigabytes, *teraflops, share = line.split()
        teraflops = float(*teraflops) if teraflops else None
        return Row(function, rung, precision, float(ms), float(gigabytes), teraflops, float(share.removesuffix("%")) / 100)
    except (ValueError, TypeError) as error:
        raise UserError(f"{name} must be a table that python -m dev.kernels printed on a GPU, got the line {line!r}") from error


def _where(title):
    """GPU, date and numba-cuda's version from the first line of a file."""
    _, _, where = title.partition(", one ")
    return ", ".join(where.split(", ")[:3])
