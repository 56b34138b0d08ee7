"""The named sources of `python -m gpt2_numba.data NAME`: a table from each name to what it is and how its data are had.

A source with `parts` gives text: a list of parts (see text_parts.py), which are tokenized and written to shards by shard_making.py. One
with `fetch` does everything itself, as for shards that are ready: fetch(arguments) prints what it has made and how to train with it. One
with both fetches, unless --text asks for the text. A path that exists is a source, too, without a name.

Sources that need a network are in hub_sources.py: HUB_SOURCES is such a table, and add_hub_options(parser) adds the command-line options
that only they have.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A named source.

    purpose    what it is, a line for --help
    parts      parts(arguments) -> list of parts of text; arguments: the argparse.Namespace of the command line
    fetch      fetch(arguments) -> exit code or None: fetches or makes files without tokenizing
    split      where documents begin in the text, as for --split; None: the parts tell
    val_tokens tokens for validation, the first ones; None: a share of the text, or the parts tell
    """

    purpose: str
    parts: Callable | None = None
    fetch: Callable | None = None
    split: str | None = None
    val_tokens: int | None = None


def _python_parts(arguments):
    from gpt2_numba.data.python_sources import python_parts

    return python_parts()


def _built_in_parts(arguments):
    from gpt2_numba.data.builtin_corpus import builtin_parts

    return builtin_parts()


def sources():
    """All named sources: dict from name to Source."""
    from gpt2_numba.data.hub_sources import HUB_SOURCES  # here, since it needs Source

    return {
        "python": Source("the Python sources on this machine: standard library and installed packages; no network", parts=_python_parts),
        "built-in": Source("the text that the trainer uses without -i, 8 MiB; no network", parts=_built_in_parts),
        **HUB_SOURCES,
    }


def add_hub_options(parser):
    """Add the options that only those of hub_sources.py have."""
    from gpt2_numba.data import hub_sources

    hub_sources.add_hub_options(parser)
