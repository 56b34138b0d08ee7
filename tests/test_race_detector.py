"""The race detector: what it must find, with which message; what it must accept; and every barrier of the package, removed.

Four parts: wrong kernels; correct ones; the kernels of every layer, which must raise no error; and the same with one barrier removed, which
must raise one. The barriers are found in the source, so a new kernel's are included, and a barrier that no case reaches is an error.
"""

import ast
import functools
import inspect
import re
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from numba import cuda, float32, uint16, uint32

from gpt2_numba.gpu import block_sum as block_sum_module
from gpt2_numba.gpu import simulator
from gpt2_numba.gpu.backend import SIMULATING, bfloat16_bits
from gpt2_numba.gpu.memory_access import load1, load8, store1, store8
from gpt2_numba.gpu.race_detector import BarrierError, RaceError, WatchedCuda, address_of, kernel_frame, race_detector
from gpt2_numba.gpu.reductions import COLUMN_WARPS, WARP_SIZE, add_up_warps, block_max, block_sum, warp_sum
from gpt2_numba.gpu.shared_memory import (
    commit_copies,
    copy8_async,
    copy16_async,
    copy16_out,
    launch_with_shared_memory,
    load_matrices,
    shared_bytes,
    shared_elements,
    sync_warp,
    wait_for_copies,
)
from gpt2_numba.gpu.wgmma import (
    RESULT_SIZE,
    TILE_BYTES,
    WARPGROUP,
    begin_multiply_transposed,
    copy_row16_async,
    fence_async,
    tile_descriptor,
    wait_for_products,
)
from gpt2_numba.layer_checks import LAYERS, GuardedArray, Sizes, kernel_calls, small_sizes
from gpt2_numba.layer_checks.all_layers import STORAGE
from gpt2_numba.layer_checks.float8 import calls as float8_calls
from gpt2_numba.layers.fast import attention
from gpt2_numba.layers.fast.attention import mma, tf32, wgmma

pytestmark = pytest.mark.skipif(not SIMULATING, reason="tests Numba's simulator, which is off")

THREADS = 64


def floats(*shape):
    return np.zeros(shape, np.float32)


def at(kernel, text):
    """The line of the kernel that contains `text`, as a message names it."""
    lines, first = inspect.getsourcelines(kernel.py_func)
    (line,) = (number for number, line in enumerate(lines, first) if text in line)
    return f"({Path(__file__).name}:{line})"


def error_message(error, kernel, *arguments, blocks=1, threads=THREADS, dynamic=0):
    """The detector's message, without the thread indices that the simulator puts in front."""
    with race_detector(), pytest.raises(error) as raised:
        kernel[blocks, threads, 0, dynamic](*arguments)
    assert raised.type is error
    indices, message = str(raised.value).split("]: ", 1)
    assert indices.startswith("tid=[") and "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------ what it must find


BARRIER, SYNC_WARP, SHUFFLE, NOTHING = 1, 2, 3, 4


@cuda.jit
def neighbour_kernel(out, distance, waits):
    """Every thread writes to shared memory; thread 40 reads what thread 40 - distance has written."""
    values = cuda.shared.array(THREADS, float32)
    i = cuda.threadIdx.x
    values[i] = i
    if waits == BARRIER:
        cuda.syncthreads()
    elif waits == SYNC_WARP:
        sync_warp()
    elif waits == SHUFFLE:
        warp_sum(float32(1))
    if i == 40:
        out[0] = values[i - distance]


@pytest.mark.parametrize("distance, waits, missing", [
    (1, NOTHING, "barrier or sync_warp"), (1, SHUFFLE, "barrier or sync_warp"),
    (32, NOTHING, "barrier"), (32, SYNC_WARP, "barrier"), (32, SHUFFLE, "barrier"),
])  # fmt: skip
def test_a_read_after_a_write(distance, waits, missing):
    """A shuffle does not order memory, and sync_warp only within the warp."""
    got = error_message(RaceError, neighbour_kernel, floats(THREADS), distance, waits)
    wrote, read = at(neighbour_kernel, "values[i] = i"), at(neighbour_kernel, "out[0] =")
    assert got == f"values[{40 - distance}]: thread {40 - distance} wrote it {wrote}, thread 40 read it {read}, with no {missing} between"


@cuda.jit
def loop_kernel(out, waits):
    """In every iteration thread 5 reads what thread 40 has written; then thread 40 writes again."""
    shared = cuda.shared.array((2, 3), float32)
    i = cuda.threadIdx.x
    for step in range(2):
        if i == 40:
            shared[1, 2] = step
        cuda.syncthreads()
        if i == 5:
            out[step] = shared[1, 2]
        if waits:
            cuda.syncthreads()


def test_a_write_after_a_read():
    """In the next iteration of a loop."""
    got = error_message(RaceError, loop_kernel, floats(2), False)
    read, wrote = at(loop_kernel, "out[step] ="), at(loop_kernel, "shared[1, 2] = step")
    assert got == f"shared[1, 2]: thread 5 read it {read}, thread 40 wrote it {wrote}, with no barrier between"


@cuda.jit
def same_value_kernel(out):
    out[2] = 1


def test_two_writes():
    """A race, even if both threads write the same value."""
    line = at(same_value_kernel, "out[2] = 1")
    got = error_message(RaceError, same_value_kernel, floats(3))
    assert got == f"out[2]: thread 0 wrote it {line}, thread 1 wrote it {line}, with no barrier or sync_warp between"


@cuda.jit
def sum_of_blocks_kernel(dweight, dout):
    """The mistake of a first attempt at a sum over rows: every block adds to the same elements."""
    c = cuda.threadIdx.x
    dweight[c] += dout[cuda.blockIdx.x, c]


def test_blocks_that_add_to_the_same_element():
    got = error_message(RaceError, sum_of_blocks_kernel, floats(THREADS), floats(2, THREADS), blocks=2)
    line = at(sum_of_blocks_kernel, "dweight[c] +=")
    assert got == f"dweight[0]: thread 0 of block 0 wrote it {line}, thread 0 of block 1 read it {line}, and blocks run in any order"


@cuda.jit
def read_then_write_kernel(out, inp):
    """Block 0 reads what block (1, 1) writes. Two arguments may be the same memory."""
    b = cuda.blockIdx
    if b.x == 1 and b.y == 1:
        out[3] = 1
    elif b.x == 0 and b.y == 0:
        cuda.syncthreads()
        inp[3]


def test_a_block_reads_what_another_block_writes():
    array = cuda.to_device(floats(8))
    got = error_message(RaceError, read_then_write_kernel, array, array, blocks=(2, 2), threads=1)
    read, wrote = at(read_then_write_kernel, "inp[3]"), at(read_then_write_kernel, "out[3] = 1")
    assert got == f"out[3]: thread 0 of block 0 read it {read}, thread 0 of block (1, 1, 0) wrote it {wrote}, and blocks run in any order"


@cuda.jit(device=True)
def first_element(values):
    return values[0]


@cuda.jit
def unwritten_kernel(out, which):
    """Block 0 writes to shared memory and reads it; block 1 only reads."""
    static = cuda.shared.array(4, float32)
    dynamic = cuda.shared.array(0, float32)
    if cuda.blockIdx.x == 0:
        static[0] = dynamic[1] = 1
    if which == 0:
        out[cuda.blockIdx.x] = first_element(static)
    else:
        out[cuda.blockIdx.x] = dynamic[1]


@cuda.jit
def skipped_barrier_kernel(out):
    i = cuda.threadIdx.x
    if i < 2:
        cuda.syncthreads()
    out[i] = 1


@cuda.jit
def two_barriers_kernel(out):
    i = cuda.threadIdx.x
    if i < 2:
        cuda.syncthreads()
    else:
        cuda.syncthreads()
    out[i] = 1


@cuda.jit(device=True)
def wait():
    cuda.syncthreads()


@cuda.jit
def two_calls_kernel(out):
    i = cuda.threadIdx.x
    if i < 2:
        wait()
    else:
        wait()
    out[i] = 1


@cuda.jit
def early_return_kernel(out):
    i = cuda.threadIdx.x
    if i == 0:
        return
    cuda.syncthreads()
    out[i] = 1


@pytest.mark.parametrize(
    "kernel, message",
    [
        (skipped_barrier_kernel, r"thread 0 waits at a barrier \(\S+\), and thread 2 has returned without reaching it"),
        (early_return_kernel, r"thread 1 waits at a barrier \(\S+\), and thread 0 has returned without reaching it"),
        (two_barriers_kernel, r"thread 0 waits at a barrier \(\S+\) while thread 2 waits at another \(\S+\)"),
        (two_calls_kernel, r"thread 0 waits at a barrier \(\S+, called at \S+\) while thread 2 waits at another"),
    ],
)
def test_a_barrier_that_not_all_threads_reach(kernel, message):
    assert re.match(message, error_message(BarrierError, kernel, floats(4), threads=4))


@pytest.mark.parametrize("which, element, line", [
    (0, "static[0]", at(first_element, "return")), (1, "dynamic shared memory, byte 4", at(unwritten_kernel, "= dynamic[1]\n")),
], ids=["static", "dynamic"])  # fmt: skip
def test_shared_memory_that_no_thread_has_written(which, element, line):
    """What the previous block has left there does not count."""
    got = error_message(RaceError, unwritten_kernel, floats(2), which, blocks=2, threads=1, dynamic=16)
    assert got == f"{element}: thread 0 read it {line} before any thread of its block has written it: is a barrier missing?"


@cuda.jit
def out_of_bounds_kernel(out, where, index):
    shared = cuda.shared.array((2, 5), float32)
    local = cuda.local.array(4, float32)
    if where == 0:
        out[index, 0] = 1
    elif where == 1:
        shared[1, index] = 1
    elif where == 2:
        local[index] = 1
    elif where == 3:
        out[0, 1] = local[index]
    elif where == 4:
        out[0, 1] = load1(out, index)
    else:
        store1(out, index, float32(1))


@pytest.mark.parametrize("index", [-1, 6])
@pytest.mark.parametrize("where, element, text, shape", [
    (0, "out[{}, 0]: thread 0 wrote it", "out[index, 0] = 1", (3, 2)),
    (1, "shared[1, {}]: thread 0 wrote it", "shared[1, index] = 1", (2, 5)),
    (2, "local[{}]: thread 0 wrote it", "local[index] = 1", (4,)),
    (3, "local[{}]: thread 0 read it", "= local[index]", (4,)),
    (4, "out[{}]: thread 0 read it", "load1", (6,)),
    (5, "out[{}]: thread 0 wrote it", "store1", (6,)),
], ids=["global", "shared", "local", "local, read", "load1", "store1"])  # fmt: skip
def test_out_of_bounds(where, element, text, shape, index):
    got = error_message(IndexError, out_of_bounds_kernel, floats(3, 2), where, index, threads=1)
    assert got == f"{element.format(index)} {at(out_of_bounds_kernel, text)}, out of bounds for shape {shape}"


@cuda.jit
def atomics_kernel(out, plain_read):
    cuda.atomic.add(out, 1, 1)
    if plain_read:
        out[0] = out[1]


def test_an_atomic_operation_races_with_a_plain_read():
    """By another thread of the same block, or of another block."""
    changed, read = at(atomics_kernel, "cuda.atomic"), at(atomics_kernel, "out[0] = out[1]")
    got = error_message(RaceError, atomics_kernel, floats(2), True)
    assert got == f"out[1]: thread 0 read it {read}, thread 1 atomically changed it {changed}, with no barrier or sync_warp between"
    got = error_message(RaceError, atomics_kernel, floats(2), True, threads=1, blocks=2)
    expected = (
        f"out[1]: thread 0 of block 0 read it {read}, thread 0 of block 1 atomically changed it {changed}, and blocks run in any order"
    )
    assert got == expected


# ----------------------------------------------------------------------------- copies, wide loads and stores, tensor cores


@cuda.jit
def copies_kernel(out, inp, mistake):
    """Copies by way of shared memory, eight elements per thread; thread i stores what thread i - 1 has copied."""
    elements = shared_elements(inp)
    i = cuda.threadIdx.x
    x = cuda.local.array(8, float32)
    copy8_async(elements, 8 * i, inp, 8 * i)
    commit_copies()
    if mistake == 1:
        cuda.syncthreads()
    wait_for_copies(0)
    if mistake == 0:
        cuda.syncthreads()
    other = i - 1 if i else i
    load8(elements, 8 * other, x)
    store8(out, 8 * other if mistake == 2 else 8 * i, x)


@pytest.mark.parametrize("mistake", [1, 3])
def test_a_barrier_before_the_wait_does_not_help(mistake):
    arguments = floats(8 * THREADS), floats(8 * THREADS), mistake
    wrote, read = at(copies_kernel, "wait_for_copies"), at(copies_kernel, "load8")
    got = error_message(RaceError, copies_kernel, *arguments, dynamic=32 * THREADS)
    assert got == f"dynamic shared memory, byte 0: thread 0 wrote it {wrote}, thread 1 read it {read}, with no barrier or sync_warp between"


@cuda.jit
def wide_kernel(out, first):
    """Eight elements at once, in an array of several rows."""
    x = cuda.local.array(8, float32)
    i = cuda.threadIdx.x
    if i == 1:
        load8(out, first, x)
    else:
        store8(out, 16, x)


@pytest.mark.parametrize("storage", STORAGE.values(), ids=STORAGE)
def test_wide_loads_and_stores(storage):
    """The message names the line of the kernel, not of the twin, and the index of the first element."""
    got = error_message(RaceError, wide_kernel, np.zeros((4, 8), storage), 16, threads=2)
    wrote, read = at(wide_kernel, "store8"), at(wide_kernel, "load8")
    assert got == f"out[2, 0]: thread 0 wrote it {wrote}, thread 1 read it {read}, with no barrier or sync_warp between"


@cuda.jit
def matrices_kernel(out, inp, waits):
    """Lane i copies row i of 16 bytes; then the warp loads the rows as matrices, row 31 - i by lane i; then lane 0 copies its row again."""
    memory = shared_bytes()
    lane = cuda.threadIdx.x
    copy16_async(memory, uint32(16 * lane), inp, 4 * lane)
    commit_copies()
    wait_for_copies(0)
    sync_warp()
    out[lane] = load_matrices(memory, uint32(16 * (31 - lane)))[0]
    if waits:
        sync_warp()
    if lane == 0:
        copy16_async(memory, uint32(0), inp, 0)


def test_load_matrices_does_not_order_memory():
    got = error_message(RaceError, matrices_kernel, np.zeros(32, np.uint32), floats(128), False, threads=32, dynamic=512)
    read, wrote = at(matrices_kernel, "load_matrices("), at(matrices_kernel, "uint32(0)")
    expected = f"thread 31 read it {read}, thread 0 wrote it {wrote}, with no barrier or sync_warp between"
    assert got == f"dynamic shared memory, byte 0: {expected}"


@cuda.jit
def tiles_kernel(results, a, mistake):
    """a aᵀ of one tile."""
    memory = shared_bytes()
    thread = cuda.threadIdx.x
    for step in range(4):
        copy_row16_async(memory, uint32(16 * (thread + step * WARPGROUP)), a, 8 * thread, step, 8 * WARPGROUP)
    commit_copies()
    wait_for_copies(0)
    if mistake != 1:
        fence_async()
    if mistake != 2:
        cuda.syncthreads()
    if mistake == 1:
        fence_async()
    result = cuda.local.array(RESULT_SIZE, float32)
    tile = tile_descriptor(memory, uint32(0))
    begin_multiply_transposed(result, tile, tile)
    wait_for_products(0, result)
    results[thread] = result[0]
    if mistake == 3 and thread == 5:
        memory[8] = 0


@pytest.mark.parametrize("mistake", [1, 2], ids=["fence after the barrier", "no barrier"])
def test_a_written_tile_needs_a_fence_and_a_barrier_before_its_product(mistake):
    arguments = floats(WARPGROUP), np.zeros((64, 64), np.uint16), mistake
    got = error_message(RaceError, tiles_kernel, *arguments, threads=WARPGROUP, dynamic=TILE_BYTES)
    wrote, read = at(tiles_kernel, "wait_for_copies"), at(tiles_kernel, "begin_multiply")
    expected = f"thread 0 wrote it {wrote}, tensor cores multiplied it {read}, with no fence_async and barrier between"
    assert got == f"dynamic shared memory, byte 0: {expected}"


def test_a_tile_needs_a_barrier_after_its_product_before_it_is_written():
    got = error_message(RaceError, tiles_kernel, floats(WARPGROUP), np.zeros((64, 64), np.uint16), 3, threads=WARPGROUP, dynamic=TILE_BYTES)
    read, wrote = at(tiles_kernel, "begin_multiply"), at(tiles_kernel, "memory[8] = 0")
    assert got == f"dynamic shared memory, byte 8: tensor cores multiplied it {read}, thread 5 wrote it {wrote}, with no barrier between"


# ------------------------------------------------------------------------------------------------- what it must accept


@cuda.jit
def bfloat16_neighbours_kernel(out):
    """Neighbouring elements of two bytes, in global memory and in shared memory."""
    shared = cuda.shared.array(THREADS, uint16)
    i = cuda.threadIdx.x
    shared[i] = i
    store1(out, i, float32(shared[i]))


@cuda.jit
def twice_kernel(out):
    """The device functions that a block may call repeatedly, each called twice in a row."""
    i = cuda.threadIdx.x
    values = cuda.local.array(8, float32)
    for k in range(8):
        values[k] = i
    out[0, i] = block_sum(float32(i)) + block_sum(float32(i))
    out[1, i] = block_max(float32(i)) + block_max(float32(i))
    add_up_warps(values)
    add_up_warps(values)
    out[2, i] = values[0]


@cuda.jit
def plain_twice_kernel(out):
    """The same for those of the plain kernels."""
    i = cuda.threadIdx.x
    out[0, i] = block_sum_module.block_sum(float32(i)) + block_sum_module.block_sum(float32(i))
    out[1, i] = block_sum_module.block_max(float32(i)) + block_sum_module.block_max(float32(i))


@cuda.jit
def copy_out_kernel(out, inp):
    memory = shared_bytes()
    i = cuda.threadIdx.x
    copy16_async(memory, uint32(16 * i), inp, 8 * i)
    commit_copies()
    wait_for_copies(0)
    sync_warp()
    copy16_out(out, 8 * (i ^ 1), memory, uint32(16 * (i ^ 1)))


@pytest.mark.parametrize("kernel, arguments, options", [
    (neighbour_kernel, (floats(THREADS), 1, BARRIER), {}),
    (neighbour_kernel, (floats(THREADS), 32, BARRIER), {}),
    (neighbour_kernel, (floats(THREADS), 1, SYNC_WARP), {}),
    (loop_kernel, (floats(2), True), {}),
    (atomics_kernel, (floats(2), False), {"blocks": 3}),
    (copies_kernel, (floats(8 * THREADS), floats(8 * THREADS), 0), {"dynamic": 32 * THREADS}),
    (copies_kernel, (bfloat16_bits(floats(8 * THREADS)), bfloat16_bits(floats(8 * THREADS)), 0), {"dynamic": 16 * THREADS}),
    (wide_kernel, (floats(4, 8), 8), {"threads": 2}),
    (matrices_kernel, (np.zeros(32, np.uint32), floats(128), True), {"threads": 32, "dynamic": 512}),
    (tiles_kernel, (floats(WARPGROUP), np.zeros((64, 64), np.uint16), 0), {"threads": WARPGROUP, "dynamic": TILE_BYTES}),
    (bfloat16_neighbours_kernel, (np.zeros(THREADS, np.uint16),), {}),
    (copy_out_kernel, (np.zeros(8 * 32, np.uint16), np.zeros(8 * 32, np.uint16)), {"threads": 32, "dynamic": 512}),
    (twice_kernel, (floats(3, COLUMN_WARPS * WARP_SIZE),), {"threads": COLUMN_WARPS * WARP_SIZE}),
    (plain_twice_kernel, (floats(2, THREADS),), {}),
])  # fmt: skip
def test_correct_kernels(kernel, arguments, options):
    with race_detector():
        kernel[options.get("blocks", 1), options.get("threads", THREADS), 0, options.get("dynamic", 0)](*arguments)


def test_launches_do_not_race_with_each_other():
    with race_detector():
        dweight = floats(THREADS)
        for _ in range(2):
            sum_of_blocks_kernel[1, THREADS](dweight, floats(1, THREADS) + 1)
    assert (dweight == 2).all()


def test_a_subclass_is_told_of_every_block_and_every_access():
    told = []

    class Listener(WatchedCuda):
        def block_starts(self, block, arguments):
            told.append(("starts", block.kernel.__name__, arguments[1]))

        def block_has_ended(self, block):
            told.append(("has ended", [thread.barriers for thread in block.threads]))

        def observe(self, memory, access, start, nbytes):
            told.append((memory.name, access.kind, access.thread_id, access.block.x, start - address_of(memory.array), nbytes))

    with race_detector(Listener):
        loop_kernel[1, THREADS](floats(2), True)
    assert told[0] == ("starts", "loop_kernel", True) and told[-1] == ("has ended", [4] * THREADS)
    wrote, read = ("shared", "wrote", 40, 0, 20, 4), ("shared", "read", 5, 0, 20, 4)
    assert told[1:-1] == [wrote, read, ("out", "wrote", 5, 0, 0, 4), wrote, read, ("out", "wrote", 5, 0, 4, 4)]


def test_the_detector_works_after_an_error_and_is_off_after_the_context():
    error_message(RaceError, same_value_kernel, floats(3))
    with race_detector():
        test_correct_kernels(neighbour_kernel, (floats(THREADS), 1, BARRIER), {})
    out = floats(3)
    same_value_kernel[1, THREADS](out)
    assert out[2] == 1


def test_results_have_the_same_bits():
    inp = np.random.default_rng(3).standard_normal(8 * THREADS, np.float32)
    results = []
    for context in (race_detector, nullcontext):
        results.append(out := floats(8 * THREADS))
        with context():
            launch_with_shared_memory(copies_kernel, 1, THREADS, 32 * THREADS, out, inp, 0)
    np.testing.assert_array_equal(*results)


# ----------------------------------------------------------------------------------------------- the kernels of every layer


def attention_sizes(T, HS):
    return Sizes(B=1, T=T, C=HS, NH=1, V=37, Vp=64, OC=8)


# name -> (layer, kernel set, precision, sizes, attention's engine or None for the layer's own choice)
CASES = {
    f"{kernels} {layer}, {precision}, {sizes}": (layer, kernels, precision, sizes, None)
    for layer in LAYERS for kernels, precision in (("plain", "fp32"), ("fast", "fp32"), ("fast", "bf16"))
    for sizes in small_sizes(layer, precision, kernels)
}  # fmt: skip
CASES |= {f"mma, heads of {HS}": ("attention", "fast", "bf16", attention_sizes(19, HS), mma) for HS in mma.HEAD_SIZES}
CASES |= {f"tf32, heads of {HS}": ("attention", "fast", "fp32", attention_sizes(19, HS), tf32) for HS in tf32.HEAD_SIZES}
CASES["wgmma, two tiles"] = "attention", "fast", "bf16", attention_sizes(70, wgmma.HS), wgmma
# More tiles than a ring has slots, so slots are reused.
CASES["mma, three tiles"] = "attention", "fast", "bf16", attention_sizes(37, 64), mma
CASES["tf32, three tiles"] = "attention", "fast", "fp32", attention_sizes(37, 64), tf32
CASES["wgmma, four tiles"] = "attention", "fast", "bf16", attention_sizes(199, wgmma.HS), wgmma
CASES["factors of eight bits"] = CASES["device functions called twice"] = CASES["plain device functions called twice"] = None


def launch(case):
    """All launches of a case, with the race detector on."""
    if case == "factors of eight bits":
        rng = np.random.default_rng(2)
        with race_detector():
            for call in float8_calls(48, 32, 48, lambda *shape: rng.standard_normal(shape, np.float32)):
                call.launch(SimpleNamespace(**{name: GuardedArray(tensor, STORAGE["bf16"]).array for name, tensor in call.tensors.items()}))
        return None
    if CASES[case] is None:
        kernel, threads = (plain_twice_kernel, THREADS) if "plain" in case else (twice_kernel, COLUMN_WARPS * WARP_SIZE)
        with race_detector():
            return kernel[1, threads](floats(3, threads))
    layer, kernels, precision, sizes, engine = CASES[case]
    storage = STORAGE[precision]
    with mock.patch.object(attention, "engine", (lambda dtype, HS: engine) if engine else attention.engine), race_detector():
        for call in kernel_calls(layer, sizes, storage, kernels):
            call.launch(SimpleNamespace(**{name: GuardedArray(tensor, storage).array for name, tensor in call.tensors.items()}))


@contextmanager
def barriers_replaced(replacement):
    """Call replacement(wait, place) instead of waiting at a barrier, where place is the barrier's (file, line)."""

    def replaced(wait):
        def wait_or_not(thread, *team):
            frame = kernel_frame(sys._getframe(1))
            replacement(lambda: wait(thread, *team), (frame.f_code.co_filename, frame.f_lineno))

        return wait_or_not

    waits = {name: replaced(getattr(simulator.SimulatedThread, name)) for name in ("syncthreads", "sync_warp", "sync_team")}
    with mock.patch.multiple(simulator.SimulatedThread, **waits):
        yield


@functools.cache
def run(case):
    """(set of the barriers that a case reaches, as (file, line); its run time in seconds)."""
    reached, start = set(), time.perf_counter()

    def note(wait, place):
        reached.add(place)
        wait()

    with barriers_replaced(note):
        launch(case)
    return reached, time.perf_counter() - start


@pytest.mark.parametrize("case", CASES)
def test_no_layer_has_a_race(case):
    run(case)


# --------------------------------------------------------------------------------------------- the same, with one barrier removed


def barriers_in(path):
    """name -> (file, line) of every barrier in a file. The name: file, function, and the ordinal of the barrier in the function."""
    barriers, name = {}, path.relative_to(PACKAGE).as_posix()

    def visit(node, function):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("cuda.syncthreads", "sync_warp", "sync_team"):
            ordinal = 1 + sum(other.startswith(f"{name} {function} ") for other in barriers)
            barriers[f"{name} {function} {ordinal}"] = str(path), node.lineno
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(path.read_text(encoding="utf-8")), None)
    return barriers


PACKAGE = Path(simulator.__file__).parents[1]
BARRIERS = {name: place for path in sorted(PACKAGE.rglob("*.py")) for name, place in barriers_in(path).items()}
# Barriers whose removal no case detects: name -> why they are needed all the same.
UNDETECTED = {}


@pytest.mark.parametrize("barrier", BARRIERS)
def test_a_removed_barrier_is_detected(barrier):
    """By one of the cases that reach it; the fastest are tried first."""
    place = BARRIERS[barrier]
    cases = sorted((case for case in CASES if place in run(case)[0]), key=lambda case: run(case)[1])
    assert cases, "no case reaches this barrier"
    assert any(has_race_without(place, case) for case in cases) is (barrier not in UNDETECTED)


def has_race_without(removed, case):
    def wait_elsewhere(wait, place):
        if place != removed:
            wait()

    try:
        with barriers_replaced(wait_elsewhere):
            launch(case)
    except RaceError:
        return True
    return False


def test_barriers_listed_as_undetected_exist():
    assert set(UNDETECTED) <= set(BARRIERS)
