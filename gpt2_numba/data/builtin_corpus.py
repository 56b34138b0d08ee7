"""The built-in corpus: text that every machine with Python already has.

It has two kinds of document: the chapters of the language reference behind Python's `help()` (`pydoc_data.topics`, English with
examples), and the sources of the standard library. Tokens are bytes (see `tokenizers.byte_encoding`); each document begins with
end-of-text.

Documents are ordered by the SHA-256 of their names: the same order in every run, yet unrelated to the names, so the last tenth, kept for
validation, resembles the rest. Another Python version has slightly different text, and slightly different losses.
"""

import hashlib
import sys
import sysconfig
from pathlib import Path

import numpy as np

from gpt2_numba.data.tokenizers import byte_encoding
from gpt2_numba.errors import UserError

# Documents are added up to this many tokens: more than a laptop trains on in minutes, and quick to load.
LARGEST_CORPUS = 8 * 2**20
VALIDATION_SHARE = 10  # one token in ten

# Left out: tests, whole programs that many installations lack, and files that are tables rather than text. pydoc_data is left out as source
# because its texts are documents already.
LEFT_OUT_MODULES = {"encodings", "idlelib", "lib2to3", "pydoc_data", "test", "turtledemo"}
LEFT_OUT_FOLDERS = {"test", "tests", "idle_test"}


def builtin_corpus():
    """Return (train, validation): two 1-D uint16 arrays of byte tokens, at most 8 Mi tokens in total, split 9 : 1.

    Raises UserError if this Python has neither the language reference nor any source.
    """
    tokens = _join(_documents())
    if tokens.size < VALIDATION_SHARE:
        raise UserError(
            "the built-in corpus needs Python's own texts (pydoc_data or the standard library's sources), and "
            "this Python has neither. Pass token shards with -i and -j, or use another Python"
        )
    split = tokens.size - tokens.size // VALIDATION_SHARE
    return tokens[:split], tokens[split:]


def _documents():
    """Yield the documents as bytes, in the order of the corpus."""
    readers = {**_topic_readers(), **_source_readers()}
    for name in sorted(readers, key=lambda name: hashlib.sha256(name.encode()).digest()):
        document = readers[name]()
        if document:
            yield document


def _topic_readers():
    """Name -> function that returns the text: one per chapter of the language reference. Empty if this Python lacks it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some Linux distributions package it separately
        return {}
    return {f"pydoc_data/{topic}": text.encode for topic, text in topics.items()}


def _source_readers():
    """Name -> function that returns the text: one per source file. Empty if the library is zipped or stripped."""
    library = Path(sysconfig.get_path("stdlib"))
    readers = {}
    for module in sys.stdlib_module_names - LEFT_OUT_MODULES:  # by name: the folder also holds site-packages and builds
        for path in [library / f"{module}.py", *(library / module).rglob("*.py")]:
            name = path.relative_to(library)
            if not LEFT_OUT_FOLDERS.intersection(name.parts):
                readers[name.as_posix()] = lambda path=path: _read_source(path)
    return readers


def _read_source(path):
    """The file as UTF-8 bytes with "\\n" line ends on every system, or b"" if it is not readable UTF-8."""
    try:
        return path.read_text(encoding="utf-8").encode()
    except (OSError, UnicodeDecodeError):
        return b""


def _join(documents):
    """The tokens of all documents, uint16, end-of-text before each; the document that exceeds LARGEST_CORPUS is cut."""
    end_of_text = np.array([byte_encoding().eot_token], dtype=np.uint16)
    parts, size = [np.empty(0, dtype=np.uint16)], 0
    for document in documents:
        parts += [end_of_text, np.frombuffer(document, dtype=np.uint8)]  # the byte tokenizer: token i is byte i
        size += 1 + len(document)
        if size >= LARGEST_CORPUS:
            break
    return np.concatenate(parts, dtype=np.uint16)[:LARGEST_CORPUS]
