"""The named sources of `python -m gpt2_numba.data NAME`: a table from each name to what it is and how its data are had.

A path that exists is a source, too, without a name. Sources that need a network are in fetching/hub_sources.py: HUB_SOURCES is such a
table.
"""

from gpt2_numba.data.fetching.hub_sources import HUB_SOURCES
from gpt2_numba.data.making.builtin_text import builtin_parts
from gpt2_numba.data.making.python_sources import python_parts
from gpt2_numba.data.making.source import SHARD_OPTIONS, Source


def sources():
    """All named sources: dict from name to Source."""
    return {
        "python": Source(
            "the Python sources on this machine: standard library and installed packages; no network",
            parts=lambda _arguments: python_parts(),
            parts_options=SHARD_OPTIONS,
        ),
        "built-in": Source(
            "the text that the trainer uses without -i, 8 MiB; no network",
            parts=lambda _arguments: builtin_parts(),
            parts_options=SHARD_OPTIONS,
        ),
        **HUB_SOURCES,
    }
