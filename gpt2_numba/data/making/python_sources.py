"""The Python sources of this machine as text to train on: the standard library and the installed packages; no network is needed.

Each file is a document. Left out are

- what is not valid UTF-8, or has no letter at all,
- exact duplicates, line ends aside: the first in the order of the names remains,
- generated files and tables, by the rules of Chen et al. 2021 (arXiv:2107.03374, section 3.1), with letters instead of alphanumeric
  characters, which also finds tables of numbers: more than 1 MB, a line of more than 1,000 characters, lines of more than 100 characters on
  average, or less than a quarter letters; and files whose first lines say that they were generated.

Whole packages are for validation, so that no text is in both: about a hundredth of all bytes. Packages, and the files within training and
validation, are in the order of the SHA-256 of their names: unrelated to the names, and the same on every run.
"""

import hashlib
import re
import site
import string
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from gpt2_numba.data.making.text_parts import TextOptions, group_files
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError
from gpt2_numba.progress import Progress

VALIDATION_SHARE = 100  # one byte in a hundred
LARGEST_FILE = 1_000_000  # bytes
LONGEST_LINE, LONGEST_MEAN_LINE = 1000, 100  # characters
SMALLEST_SHARE_OF_LETTERS = 0.25
LETTERS = string.ascii_letters.encode() + bytes(range(0x80, 0x100))  # bytes of UTF-8: whatever is not ASCII counts as a letter
GENERATED = re.compile(
    r"@generated|do not (?:edit|modify)|auto-?matically generated|auto-?generated|generated (?:by|from|with) |this file (?:is|was) generated",
    re.IGNORECASE,
)
LINES_THAT_TELL = 8  # a generated file says so in its first lines


@dataclass(frozen=True)
class SourceFile:
    """name: the package and the path in its folder; package: the first part of it."""

    name: str
    package: str
    path: Path
    size: int


def python_parts():
    """The parts of all Python sources, those for validation first. Prints what was left out. Raises UserError if there are none."""
    files, left_out = choose_files(source_files(library_folders()))
    if not files:
        raise UserError("python: this Python has no sources, neither of the standard library nor of packages: use another Python")
    validation = validation_packages(files)
    print(describe(files, left_out, validation))
    options = TextOptions()
    ordered = sorted(files, key=lambda file: _mixed(file.name))
    return [
        part
        for is_validation in (True, False)
        for part in group_files([file.path for file in ordered if (file.package in validation) == is_validation], options, is_validation)
    ]


def library_folders():
    """(prefix of the names, folder): the standard library, and every folder of packages that this Python uses."""
    standard = Path(sysconfig.get_path("stdlib"))
    packages = [Path(entry) for entry in [*sys.path, *site.getsitepackages(), site.getusersitepackages()]]
    packages = [folder for folder in packages if folder.name in ("site-packages", "dist-packages") and folder.is_dir()]
    distinct = {folder.resolve(): folder for folder in reversed(packages)}
    return [("stdlib", standard), *(("packages", folder) for folder in reversed(distinct.values()))]


def source_files(folders):
    """All .py files in the folders, as SourceFiles. Those of packages are not taken for the standard library's."""
    found, packages = {}, {"site-packages", "dist-packages"}
    for prefix, folder in folders:
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder)
            if packages.isdisjoint(inner.parts) and path.is_file():
                package = f"{prefix}/{inner.parts[0].removesuffix('.py')}"
                found.setdefault(path.resolve(), SourceFile(f"{prefix}/{inner.as_posix()}", package, path, path.stat().st_size))
    return list(found.values())


def choose_files(files):
    """(files that are documents, {reason: number of files left out}), by the rules of the module's docstring."""
    chosen, left_out, seen = [], {}, set()
    with Progress("reading the sources", sum(file.size for file in files), "B") as progress:
        for file in sorted(files, key=lambda file: file.name):
            progress.advance(file.size)
            reason = _reason_to_leave_out(file, seen)
            if reason:
                left_out[reason] = left_out.get(reason, 0) + 1
            else:
                chosen.append(file)
    return chosen, left_out


def _reason_to_leave_out(file, seen):
    """Why a file is no document; None if it is one. seen: the digests of the documents so far, to which it is added."""
    if file.size > LARGEST_FILE:
        return "larger than 1 MB"
    try:
        with open_regular(file.path, "r", encoding="utf-8-sig") as source:
            text = source.read()
    except (OSError, UnicodeDecodeError):
        return "not readable UTF-8"
    if reason := looks_generated(text):
        return reason
    digest = hashlib.sha256(text.encode()).digest()
    if digest in seen:
        return "duplicates"
    seen.add(digest)
    return None


def looks_generated(text):
    """Why the text of a source looks generated, like a table, or empty; None if a person seems to have written it."""
    data = text.encode("utf-8", "replace")
    letters = len(data) - len(data.translate(None, LETTERS))
    if letters == 0:
        return "empty"
    lines = text.splitlines()
    if any(GENERATED.search(line) for line in lines[:LINES_THAT_TELL] if line.lstrip().startswith(("#", '"', "'"))):
        return "generated"
    if max(map(len, lines)) > LONGEST_LINE or len(text) > LONGEST_MEAN_LINE * len(lines) or letters < SMALLEST_SHARE_OF_LETTERS * len(data):
        return "tables and long lines"
    return None


def validation_packages(files):
    """The names of the packages for validation: in the mixed order, from its end, all that fit into a hundredth of the bytes; at least one."""
    sizes = {}
    for file in files:
        sizes[file.package] = sizes.get(file.package, 0) + file.size
    room, chosen = sum(sizes.values()) // VALIDATION_SHARE, set()
    for package in sorted(sizes, key=_mixed, reverse=True):
        if sizes[package] <= room:
            room -= sizes[package]
            chosen.add(package)
    return chosen or {min(sizes, key=sizes.get)}


def describe(files, left_out, validation):
    """One line about the choice."""
    size = sum(file.size for file in files) / 1e6
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
    packages = len({file.package for file in files})
    return (
        f"python: {len(files):,} files of {packages:,} packages, {size:.1f} MB, {len(validation):,} packages for validation"
        f"{'; left out: ' + reasons if reasons else ''}"
    )


def _mixed(name):
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
