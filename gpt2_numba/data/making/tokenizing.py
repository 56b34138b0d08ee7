"""Tokenizing units of text (see text_parts.py) in several processes; the tokens come back in the order of the units.

Few units are under way at a time, so the memory does not depend on the size of the text. The processes ignore Ctrl-C, which the one that
gives them work handles, and end with it, however it ends.
"""

import collections
import concurrent.futures
import concurrent.futures.process
import itertools
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass

import numpy as np

from gpt2_numba.data.tokenizers import ENCODINGS, END_OF_TEXT, encode_to_array
from gpt2_numba.errors import UserError

UNITS_AHEAD = 3  # per process: one is being tokenized, the others wait for it or to be written

_encoding = None  # of a process of the pool


@dataclass(frozen=True)
class Encoded:
    """What became of a unit. tokens: uint16, end-of-text before each document; marks: how often a text says "<|endoftext|>" itself."""

    tokens: np.ndarray
    marks: int


def default_processes():
    """As many as this process may use cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_units(units, tokenizer, processes):
    """Yield (label, unit, Encoded) for each of the units, in order.

    units       an iterable of (label, unit), which is read as far ahead as there is work for the processes
    tokenizer   "bytes" or "gpt2"
    processes   1: no further one is started; otherwise that many, unless there is only one unit
    Raises UserError if the text of a unit is not what it must be, or if a process ends.
    """
    encoding = ENCODINGS[tokenizer]()
    units = iter(units)
    first = list(itertools.islice(units, 2))
    if processes == 1 or len(first) < 2:
        for label, unit in itertools.chain(first, units):
            yield label, unit, encode_unit(unit, encoding)
        return
    under_way = collections.deque()
    with _pool(tokenizer, processes) as pool:
        try:
            for label, unit in itertools.chain(first, units):
                under_way.append((label, unit, pool.submit(_encode, unit)))
                if len(under_way) > UNITS_AHEAD * processes:
                    yield _taken(under_way)
            while under_way:
                yield _taken(under_way)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UserError(
                "a process that tokenizes has ended, perhaps for lack of memory: give the same command again to go on, with fewer --processes"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def encode_unit(unit, encoding):
    """The Encoded of one unit."""
    arrays, marks = [np.empty(0, np.uint16)], 0
    end_of_text = np.array([encoding.eot_token], np.uint16)
    for begins, text in unit.pieces():
        if begins:
            arrays.append(end_of_text)
        arrays.append(encode_to_array(encoding, text))
        marks += text.count(END_OF_TEXT)
    return Encoded(np.concatenate(arrays), marks)


def _pool(tokenizer, processes):
    context = multiprocessing.get_context("spawn")  # a forked process would have this one's locks without the threads that release them
    return concurrent.futures.ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(tokenizer,))


def _taken(under_way):
    label, unit, future = under_way.popleft()
    return label, unit, future.result()


def _begin(tokenizer):
    """The beginning of a process of the pool."""
    global _encoding
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoding = ENCODINGS[tokenizer]()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _encode(unit):
    return encode_unit(unit, _encoding)
