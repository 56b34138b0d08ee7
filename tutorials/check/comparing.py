"""Compares what the learner's function left in its arrays with what it should have: the first wrong element, and which thread wrote it."""

import linecache

import numpy as np

from gpt2_numba.gpu.backend import FLOAT32
from gpt2_numba.layer_checks.running import GUARD
from gpt2_numba.layer_checks.tolerances import half_ulp
from tutorials.check.failures import Failure
from tutorials.check.watching import name_thread


def check_arrays(call, after, before, guarded, record):
    """Raise Failure for the first thing wrong in the arrays after a Call.

    after, before   the arguments of the reference, as namespaces
    guarded         name -> GuardedArray
    """
    stored = {name: array.fetch() for name, array in guarded.items()}
    for name, tensor in call.tensors.items():
        if tensor.access == "r":
            check_input(name, guarded[name], stored[name], record)
        if problem := guarded[name].problem(stored[name]):
            raise Failure("input", f"{name}: {problem}")
    bounds = call.errors(after, before, FLOAT32)
    for name, tensor in call.tensors.items():
        if tensor.access == "w":
            got, start = (cells[GUARD:-GUARD].reshape(tensor.shape) for cells in (stored[name], guarded[name].before))
            check_output(Output(name, got, getattr(after, name), bounds.get(name), last_writers(guarded[name], record), start))


def last_writers(guarded, record):
    """Position in the array -> the last Touch that wrote there."""
    array = guarded.array._ary
    start = array.__array_interface__["data"][0]
    inside = (touch for touch in record.touches if not touch.is_read and 0 <= touch.address - start < array.nbytes)
    elements = ((touch, range(0, touch.nbytes, array.itemsize)) for touch in inside)  # a wide store writes several
    return {(touch.address - start + byte) // array.itemsize: touch for touch, bytes_ in elements for byte in bytes_}


def check_input(name, guarded, stored, record):
    """Raise Failure if an element of an input has changed."""
    shape = guarded.tensor.shape
    bits = f"u{stored.dtype.itemsize}"  # NaN differs from itself
    changed = np.argwhere((stored.view(bits) != guarded.before.view(bits))[GUARD:-GUARD].reshape(shape))
    if changed.size:
        index = tuple(int(i) for i in changed[0])
        touch = last_writers(guarded, record).get(int(np.ravel_multi_index(index, shape)))
        who = f", but {name_thread(touch)} wrote to it{line_of(touch)}" if touch else ", but it has been written to"
        raise Failure("input", f"{format_element(name, index)} is only to be read{who}")


def format_element(name, index):
    return f"{name}[{', '.join(map(str, index))}]"


def line_of(touch):
    """The source line of a Touch, as the last line of a message."""
    return f"\n    line {touch.line}: {linecache.getline(touch.file, touch.line).strip()}"


class Output:
    """One output after a call.

    got, expected   what came, and what must come        before  what it held before the call, NaN or what is accumulated into
    bound           how far off it may be; None: the bits must agree
    writers         its last_writers
    """

    def __init__(self, name, got, expected, bound, writers, before):  # parameters: those of the docstring
        self.name, self.got, self.writers, self.before = name, got, writers, before
        self.expected = np.asarray(expected, got.dtype if bound is None else np.float64).reshape(got.shape)
        if bound is None:
            self.is_wrong = got != self.expected
        else:  # the result is also rounded where the arithmetic is not
            bound = np.where(bound > 0, bound + half_ulp(np.abs(self.expected) + bound, FLOAT32), 0)
            with np.errstate(invalid="ignore"):
                self.is_wrong = ~(np.abs(got - self.expected) <= bound)

    def writer(self, index):
        """The Touch that last wrote an element, or None."""
        return self.writers.get(int(np.ravel_multi_index(index, self.got.shape)))

    def element(self, index):
        return format_element(self.name, index)


def check_output(output):
    """Raise Failure for the first wrong element of an output, in the order of memory."""
    wrong = np.argwhere(output.is_wrong)
    if wrong.size:
        index = tuple(int(i) for i in wrong[0])
        touch, many = output.writer(index), _how_many(len(wrong), output.got.size)
        if touch is None:
            raise Failure(
                "not written", f"{output.element(index)} was never written, and must become {_number(output.expected[index])}{many}"
            )
        got, expected = _number(output.got[index]), _number(output.expected[index])
        if got == expected:
            got, expected = f"{output.got[index]:.9g}", f"{output.expected[index]:.9g}"
        raise Failure(
            "value", f"{output.element(index)} is {got}, and must be {expected}{many}: {name_thread(touch)} wrote it{line_of(touch)}"
        )
    for index in np.argwhere(output.got != output.before):
        if output.writer(index) is None:
            raise Failure("host", f"{output.element(index)} is right, but no thread of a kernel wrote it: the kernel must do the work")


def _number(value):
    return f"{value:.5g}"


def _how_many(wrong, size):
    return f" ({wrong:,} of {size:,} elements {'is' if wrong == 1 else 'are'} wrong)" if size > 1 else ""
