"""What chapter 00 shows with: threads in another order, the race detector's report, functions with a line taken out, PTX."""

import numpy as np
import pytest
from numba import cuda

from gpt2_numba.gpu.backend import SIMULATING
from tutorials.gpu_figures import draw_block_sum, draw_coalescing, draw_grid, draw_threads_needed, sectors_fetched
from tutorials.orders import function_from, in_words, report, shuffled
from tutorials.ptx import float_instructions

simulated = pytest.mark.skipif(not SIMULATING, reason="needs the simulator")


@cuda.jit
def shift_kernel(a):
    i = cuda.grid(1)
    if i + 1 < a.shape[0]:
        a[i] = a[i + 1]


@cuda.jit
def add_one_kernel(out, inp):
    i = cuda.grid(1)
    out[i] = inp[i] + 1


def shifted(seed=None):
    a = cuda.to_device(np.arange(8, dtype=np.float32))
    if seed is None:
        shift_kernel[1, 8](a)
    else:
        with shuffled(seed):
            shift_kernel[1, 8](a)
    return a.copy_to_host().tolist()


@simulated
def test_a_seed_gives_an_order_and_the_simulator_s_own_returns_afterwards():
    in_order = shifted()
    assert in_order == [1, 2, 3, 4, 5, 6, 7, 7]
    assert shifted(seed=1) == shifted(seed=1)
    assert len({tuple(shifted(seed)) for seed in range(5)}) > 1
    assert shifted() == in_order


@simulated
def test_the_report_of_a_race_is_a_sentence(capsys):
    report(lambda: shift_kernel[1, 8](cuda.to_device(np.zeros(8, np.float32))))
    printed = capsys.readouterr().out
    assert printed.startswith("RaceError: a[1]: thread 0 read it (test_tutorials_orders.py:")
    assert "tid" not in printed and printed.count("\n") == 1


@simulated
def test_the_report_names_a_block_other_than_the_first(capsys):
    out, inp = cuda.device_array(10, np.float32), cuda.to_device(np.zeros(10, np.float32))
    report(lambda: add_one_kernel[3, 4](out, inp))
    assert capsys.readouterr().out.startswith("IndexError in block 2: inp[10]: thread 2 read it")


@simulated
def test_a_kernel_without_fault_is_reported_as_such(capsys):
    out, inp = cuda.device_array(8, np.float32), cuda.to_device(np.zeros(8, np.float32))
    report(lambda: add_one_kernel[2, 4](out, inp))
    assert capsys.readouterr().out.startswith("nothing found")


def test_lines_of_a_cell_are_named_without_the_number_of_the_cell():
    error = IndexError("tid=[1, 0, 0] ctaid=[0, 0, 0]: a[1]: thread 1 read it (3912384712.py:5), out of bounds for shape (1,)")
    assert in_words(error) == "IndexError: a[1]: thread 1 read it (line 5), out of bounds for shape (1,)"


@simulated
def test_messages_quote_a_function_that_comes_from_its_text(capsys):
    text = "@cuda.jit\ndef kernel(out):\n    near = cuda.shared.array(8, np.float32)\n    out[cuda.threadIdx.x] = near[0]\n"
    kernel = function_from(text, "kernel", {"cuda": cuda, "np": np})
    report(lambda: kernel[1, 8](cuda.device_array(8, np.float32)))
    assert "near[0]: thread 0 read it (changed kernel:4) before any thread" in capsys.readouterr().out


def literal_kernel(out, inp):
    total = 0.0
    for i in range(inp.shape[0]):
        total += inp[i]
    out[0] = total


def constant_kernel(out, inp):
    total = ZERO  # noqa: F821 (the program of ptx.py defines it)
    for i in range(inp.shape[0]):
        total += inp[i]
    out[0] = total


def test_a_silent_float64_shows_in_the_instructions():
    literal, constant = (float_instructions(function, "float32[::1], float32[::1]") for function in (literal_kernel, constant_kernel))
    if literal is None:
        pytest.skip("needs Numba's compiler for GPUs")
    assert any(line.startswith("add.f64") for line in literal)
    assert any(line.startswith("add.f32") for line in constant) and not any(".f64" in line for line in constant)


def test_pieces_of_memory_hold_eight_float32():
    assert sectors_fetched(range(32)) == 4
    assert sectors_fetched(range(0, 32 * 32, 32)) == 32
    assert sectors_fetched([7, 8]) == 2


def test_the_figures_say_what_they_count():
    figure = draw_coalescing((32, 32), {"rows": {i: 32 * i for i in range(32)}, "columns": {i: i for i in range(32)}})
    assert [panel.get_title() for panel in figure.axes] == ["rows:\n32 pieces for 32 numbers", "columns:\n4 pieces for 32 numbers"]
    texts = [text.get_text() for text in draw_block_sum([3, 1, 4, 1, 5, 9, 2, 6]).axes[0].texts]
    assert "31" in texts and "half = 1" in texts and "half = 8" not in texts
    assert [text.get_text() for text in draw_grid(3, 4, 10).axes[0].texts].count("?") == 2
    assert "270,336: all that fit" in [text.get_text() for text in draw_threads_needed(16e6, 4.2e12, 270_336).axes[0].texts]
