"""What a named source of `python -m gpt2_numba.data NAME` is: a line of the table in data/sources.py."""

from collections.abc import Callable
from dataclasses import dataclass

TEXT_OPTIONS = ("split", "field", "replace_invalid")  # of the command line, for text that is read from files
SHARD_OPTIONS = ("val_fraction", "val_tokens", "tokens", "shard_size")  # for shards that are made here


@dataclass(frozen=True)
class Source:
    """A named source: with `parts`, with `fetch`, or with both.

    A source with `parts` gives text: a list of parts (see text_parts.py), which are tokenized and written to shards by shard_making.py. One
    with `fetch` does everything itself, as for shards that are ready: fetch(arguments) prints what it has made and how to train with it. One
    with both fetches, unless --text asks for the text.

    purpose    what it is, a line for --help
    parts      parts(arguments) -> list of parts of text; arguments: the argparse.Namespace of the command line
    fetch      fetch(arguments) -> exit code or None: fetches or makes files without tokenizing
    split      where documents begin in the text, as for --split; None: the parts tell
    val_tokens tokens for validation, the first ones, by default; None: a share of the text, or the parts tell
    parts_options, fetch_options   names of the options that `parts`, with what follows it, and `fetch` use
    """

    purpose: str
    parts: Callable | None = None
    fetch: Callable | None = None
    split: str | None = None
    val_tokens: int | None = None
    parts_options: tuple = TEXT_OPTIONS + SHARD_OPTIONS
    fetch_options: tuple = ()

    def is_fetched(self, arguments):
        """Whether the command line asks for `fetch` rather than for `parts`."""
        return bool(self.fetch and not (self.parts and arguments.text))
