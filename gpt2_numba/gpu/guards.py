"""Guards over the arrays of an arena: after each launch they ask what it has written beside its arrays, or read before anything wrote it.

An arena allocated with red zones (arena.py) has a gap between any two arrays, and gaps and arrays begin with a pattern (red_zones.py). So

    a changed red zone      the launch just made has written beyond the end of an array, or before its start
    a new NaN in an array   the launch has read numbers that still hold the pattern, or a red zone: the pattern is a NaN, and whatever
                            is computed from it is another one

compute-sanitizer does not see these: inside one allocation every address is valid. `Guards` is an observer of launches (launches.py). Each
launch is waited for, and its arrays are read before and after it: that is slow, and changes no bit of the results.

What they cannot see: a tensor of parameters or gradients that runs into its neighbour, since these lie side by side without a gap; and
stale numbers of an earlier use, unless their owner calls `forget` when they are no longer needed.
"""

import bisect
from typing import NamedTuple

import numpy as np
from numba import cuda

from gpt2_numba.gpu.backend import compute_stream, device_pointer
from gpt2_numba.gpu.red_zones import (
    HOLDS,
    PATTERN,
    THREADS,
    WORDS,
    as_words,
    examine_ref,
    fill,
    in_host_memory,
    launch_examine,
    zones_kernel,
)

MOST_ARRAYS = 32  # arguments of a launch that are arrays


class GuardError(Exception):
    """A launch has written beside its arrays, or has read what nothing has written. The message names the kernel and the array."""


class Zone(NamedTuple):
    """A red zone: bytes start ... stop - 1 of an arena, and the names of the arrays before and after it; None at the ends."""

    start: int
    stop: int
    before: str | None
    after: str | None


class Guarded(NamedTuple):
    """An argument of a launch that lies in a guarded arena: its parameter, the array, and the name of that memory."""

    parameter: str
    array: object
    name: str


class Guards:
    """Guards over one or more arenas that have been allocated with red zones.

    arenas  list of Arena
    names   [(array, name)] of parts of their arrays that have names of their own
    may_be_nan  names of arrays in which NaN is a message
    """

    def __init__(self, arenas, names=(), may_be_nan=()):
        self._blocks = [_Block(arena) for arena in arenas]
        self._may_be_nan = set(may_be_nan)
        pieces = [piece for block in self._blocks for piece in block.pieces]
        parts = [(_address(array), _address(array) + array.nbytes, name) for array, name in names if array.size]
        # By start, and of those with the same start the longest first: the last that contains an address is the narrowest.
        self._names = sorted([*pieces, *parts], key=lambda piece: (piece[0], -piece[1]))
        self._starts = [start for start, *_ in self._names]
        self._writers = {}  # name of an array -> the launch that has written it first
        self._on_gpu = self._blocks[0].host is None
        self._found = cuda.device_array((MOST_ARRAYS, len(HOLDS)), np.int32) if self._on_gpu else None

    def __call__(self, kernel, arguments, launch):
        """Make a launch and examine what it has done. Raises GuardError."""
        guarded = [found for name, value in arguments.items() if (found := self._guarded(name, value))]
        before = self._examine(guarded)
        for argument, holds in zip(guarded, before):
            if argument.array.dtype.kind in "iu" and not _is_float(argument.array) and holds["pattern"]:
                raise GuardError(f"{kernel} reads {_described(argument)}, which nothing has written")
        launch()
        if self._on_gpu:
            cuda.synchronize()  # also a user's kernels on other streams
        for block in self._blocks:
            if zone := block.changed_zone():
                raise GuardError(f"{kernel} has written {_beside(block, zone, guarded)}")
        after = self._examine(guarded)
        self._note_writers(kernel, guarded, before, after)
        self._look_for_nan(kernel, guarded, before, after)

    def forget(self, arrays):
        """From now on nothing has written these contiguous arrays: a launch that reads one is found, whatever it held."""
        for array in arrays:
            fill(array)

    def _guarded(self, parameter, value):
        """The argument as a Guarded; None if it is no array of a guarded arena, or one with gaps."""
        if not hasattr(value, "dtype") or isinstance(value, np.generic) or not value.size or value.dtype.itemsize not in (2, 4, 8):
            return None
        start = _address(value)
        stop, middle = start + value.nbytes, start + value.nbytes // 2
        name = self._name_of(start, stop) or self._name_of(middle, middle + 1)  # a view that reaches beyond its array has its middle there
        return Guarded(parameter, value, name) if name and _is_contiguous(value) else None

    def _name_of(self, start, stop):
        """The name of the narrowest part that contains these addresses, None if there is none."""
        place = bisect.bisect_right(self._starts, start) - 1
        while place >= 0 and stop > self._names[place][1]:
            place -= 1
        return self._names[place][2] if place >= 0 else None

    def _examine(self, guarded):
        """For each array a dictionary: whether it holds each of HOLDS."""
        arrays = [argument.array for argument in guarded]
        if not self._on_gpu:
            found = [examine_ref(_as_numbers(in_host_memory(array))) for array in arrays]
        else:
            if len(arrays) > MOST_ARRAYS:
                raise ValueError(f"Guards: a launch may have at most {MOST_ARRAYS} arrays, got {len(arrays)}")
            self._found.copy_to_device(np.zeros(self._found.shape, np.int32), stream=compute_stream())
            for row, array in enumerate(arrays):
                launch_examine(self._found[row], _as_numbers(array))
            found = self._found.copy_to_host(stream=compute_stream())
            compute_stream().synchronize()
        return [dict(zip(HOLDS, map(bool, row))) for row in found[: len(arrays)]]

    def _note_writers(self, kernel, guarded, before, after):
        for argument, held, holds in zip(guarded, before, after):
            if holds["written"] and not held["written"]:
                self._writers[argument.name] = kernel

    def _look_for_nan(self, kernel, guarded, before, after):
        for argument, held, holds in zip(guarded, before, after):
            if _is_float(argument.array) and holds["nan"] and not held["nan"] and argument.name not in self._may_be_nan:
                raise GuardError(f"{kernel} has computed NaN, in {_described(argument)}: {self._source(guarded, before, after)}")

    def _source(self, guarded, before, after):
        """Where a NaN may come from: an array that nothing has written or, more likely than one that is scratch, only a part of it."""
        unread = [a for a, held, holds in zip(guarded, before, after) if held["pattern"] and holds["pattern"] and _is_float(a.array)]
        whole = [a for a, holds in zip(guarded, after) if a in unread and not holds["written"]]
        if whole:
            return f"it reads {_described(whole[0])}, which nothing has written"
        text = "it reads what it should only write, or beside its arrays, or a number has overflowed"
        if unread:
            writer = self._writers.get(unread[0].name, "a copy")
            text = f"it reads {_described(unread[0])}, of which {writer} has written only a part; or {text[3:]}"
        return text


class _Block:
    """The memory of one arena, and its red zones.

    places  name -> (offset, bytes) of each array or row        pieces  [(address, address of the end, name)] of the same
    """

    def __init__(self, arena):
        self.memory, self.host = arena.memory, in_host_memory(arena.memory)
        base = _address(self.memory)
        self.places, pieces, zones, end, previous = {}, [], [], 0, None
        for entry in arena.entries.values():
            for row, offset, nbytes in entry.pieces():
                name = entry.name if row is None or entry.shape[0] == 1 else f"{entry.name} of block {row}"
                self.places[name] = offset, nbytes
                pieces.append((base + offset, base + offset + nbytes, name))
                zones.append(Zone(end, offset, previous, name))
                end, previous = offset + nbytes, name
        self.pieces = pieces
        self.zones = [zone for zone in [*zones, Zone(end, arena.nbytes, previous, None)] if zone.stop > zone.start]
        if self.host is None:
            bounds = np.array([(zone.start // 2, zone.stop // 2) for zone in self.zones], np.int64)
            self._bounds = cuda.to_device(bounds, stream=compute_stream())
            self._changed = cuda.device_array(len(self.zones), np.int32)

    def changed_zone(self):
        """The first Zone that has changed, None if none has."""
        if self.host is not None:
            return next((zone for zone in self.zones if _changes(self.host[zone.start : zone.stop]).any()), None)
        words = as_words(self.memory, 2)
        zones_kernel[len(self.zones), THREADS, compute_stream()](self._changed, words, self._bounds)
        changed = self._changed.copy_to_host(stream=compute_stream())
        compute_stream().synchronize()
        return self.zones[int(changed.argmax())] if changed.any() else None

    def changed_bytes(self, zone):
        """(start, stop) of what has changed in a zone, in pairs of bytes, counted from the start of the arena."""
        cells = (self.memory if self.host is None else self.host)[zone.start : zone.stop]
        places = np.flatnonzero(_changes(cells.copy_to_host() if self.host is None else cells))
        return zone.start + 2 * int(places[0]), zone.start + 2 * int(places[-1]) + 2


def _changes(cells):
    """Which pairs of bytes no longer hold the pattern."""
    return cells.view(np.uint16) != PATTERN


def _beside(block, zone, guarded):
    """Where a launch has written: beyond the array before the zone or before the one after it, whichever it was given, or is nearer."""
    start, stop = block.changed_bytes(zone)
    given = {argument.name: argument for argument in guarded}
    beyond = start - zone.start <= zone.stop - stop
    if (zone.before in given) != (zone.after in given):
        beyond = zone.before in given
    if zone.before is None or zone.after is None:
        beyond = zone.after is None
    name = zone.before if beyond else zone.after
    where = f"beyond the end of {name}" if beyond else f"before the start of {name}"
    if name not in given:
        return f"{start - zone.start if beyond else zone.stop - start} bytes {where}, which is none of its arguments"
    (offset, nbytes), width = block.places[name], given[name].array.dtype.itemsize
    return f"{where} ({given[name].parameter}): it has {nbytes // width:,} elements, and element {(start - offset) // width:,} was written"


def _described(argument):
    return argument.name if argument.name == argument.parameter else f"{argument.parameter}, {argument.name}"


def _is_float(array):
    """float32, or bfloat16 held in uint16."""
    return array.dtype == np.float32 or array.dtype == np.uint16


def _as_numbers(array):
    """Integers of eight bytes as pairs of four: the pattern fills both."""
    return array.reshape((array.size,)).view(WORDS[4]) if array.dtype.itemsize == 8 else array


def _is_contiguous(array):
    host = in_host_memory(array)
    return array.is_c_contiguous() if host is None else _numpy(array).flags.c_contiguous


def _numpy(array):
    """The NumPy array behind an array in host memory, in its own shape."""
    return array if isinstance(array, np.ndarray) else array._ary


def _address(array):
    if in_host_memory(array) is None:
        return device_pointer(array)
    return _numpy(array).__array_interface__["data"][0]
