"""Rounds a tensor to eight bits (float8.py), as it lies and transposed, and finds its largest |x|.

    natural = round8(inp s)        transposed = naturalᵀ        s: the scale that float8.py derives from the largest |inp|

The tensor cores multiply eight-bit factors only if both lie in memory along the sum. So a tensor that is used in two products may be needed
both ways; they are written from one reading.

    Memory is read once, 16 bytes at a time: a thread takes 4 rows of 16 columns, eight loads in flight. A row of it is 16 bytes of the
    rounded tensor, one store. One H200, 2026-11-28, (16384, 6400), both results: 3.8 TB/s, a device-to-device copy 4.2.

    The transpose goes through shared memory. Four rows of one column are packed in one word, so a thread writes 16 words; then eight threads
    each read four words of one column and store 128 neighbouring bytes. Each row of words is one longer than it needs to be, so that the
    readers of different columns find them in different banks.

    A GELU can be computed on the way, from what was loaded: its result is rounded to the type of inp first, as the GELU's own kernel does.

    | array              | shape, type            | access                                                                  |
    | ------------------ | ---------------------- | ----------------------------------------------------------------------- |
    | inp                | (N, C) bfloat16        | [r] N and C multiples of 16                                             |
    | natural            | (N, C) uint8           | [w] may be None                                                         |
    | transposed         | (C, N) uint8           | [w] may be None                                                         |
    | largest            | (1,) float32           | [r] the largest |inp|, or |GELU(inp)|; `find_largest` raises it          |
    | inverse_scale      | (1,) float32           | [w] 1 / s, with which products are multiplied                           |
"""

import functools

import numpy as np
from numba import cuda, float32, int32, uint32

from gpt2_numba.gpu.argument_checks import check_arrays, check_on_device
from gpt2_numba.gpu.backend import SIMULATING, compute_stream
from gpt2_numba.gpu.float8 import (
    FORMATS,
    NARROW4,
    WITHOUT_SIGN,
    float8_bits,
    inverse_bits,
    magnitude_bits,
    raise_largest,
    scale_bits,
    store16,
)
from gpt2_numba.gpu.logistic import logistic_of_2u
from gpt2_numba.gpu.memory_access import WIDTH, float_of_bits, load8, round8
from gpt2_numba.gpu.reductions import WARP_SIZE, warp_largest
from gpt2_numba.integers import ceil_div

ZERO = np.float32(0)
MULTIPLE = 16  # of which sizes must be multiples: the bytes of a store, and what cuBLASLt's eight-bit products require
ROWS, COLUMNS = 4, 16  # that a thread takes: a word of the transpose, and 16 bytes of a row
PER_THREAD = ROWS * COLUMNS
WORDS = COLUMNS // 4  # of a row
TILE = 32 if SIMULATING else 128  # rows and columns of a block
ROW_THREADS = TILE // COLUMNS  # threads side by side
THREADS = TILE // ROWS * ROW_THREADS
TILE_WORDS = (TILE, TILE // ROWS + 1)
LOADS = 4  # of eight elements, in flight per thread, where the largest is searched
IN_FLIGHT = LOADS * WIDTH
LARGEST_THREADS = 32 if SIMULATING else 256
LARGEST_BLOCKS = 2 if SIMULATING else 528  # four on each multiprocessor of an H200


# ---------------------------------------------------------------------------------------------- reference, in NumPy


def find_largest_ref(inp):
    """The largest |inp|, a float32. NaN counts as the largest of all."""
    return (np.asarray(inp, np.float32).view(np.int32) & WITHOUT_SIGN).max().view(np.float32)


def quantize_ref(inp, form):
    """(the rounded tensor as bits, uint8; 1 / scale, a float32) of an array of finite numbers, for a format of gpu/float8.py."""
    largest = np.abs(inp).max()
    scale = np.float32(1.0)
    if largest >= np.finfo(np.float32).tiny:
        mantissa, exponent = np.frexp(np.float32(largest))  # largest = mantissa 2^exponent, 0.5 <= mantissa < 1
        power = form.top - int(exponent) + (1 if mantissa <= 0.875 else 0)
        scale = np.float32(2.0) ** np.float32(np.clip(power, -126, 126))
    return float8_bits(np.asarray(inp, np.float32) * scale, form), np.float32(1) / scale


# ---------------------------------------------------------------------------------------------------------- kernels


@functools.cache
def make_largest_kernel(GELU):
    """The largest_kernel, of a tensor or of its GELU."""

    @cuda.jit(cache=True)
    def largest_kernel(largest, inp):
        """largest[0] = the larger of it and the largest |inp|. A warp asks for the atomic only if it has found a larger one."""
        x = cuda.local.array(IN_FLIGHT, float32)
        bits = int32(0)
        stride = cuda.gridsize(1) * WIDTH
        for start in range(cuda.grid(1) * WIDTH, inp.size, LOADS * stride):
            for j in range(LOADS):
                if start + j * stride < inp.size:
                    load8(inp, start + j * stride, x, j * WIDTH)
                else:
                    for k in range(WIDTH):
                        x[j * WIDTH + k] = ZERO
            if GELU:
                for k in range(IN_FLIGHT):
                    x[k] *= logistic_of_2u(x[k])
                for j in range(LOADS):
                    round8(inp, x, j * WIDTH)
            for k in range(IN_FLIGHT):
                bits = max(bits, magnitude_bits(x[k]))
        bits = warp_largest(bits)
        if cuda.threadIdx.x % WARP_SIZE == 0:
            raise_largest(largest, bits)

    return largest_kernel


@functools.cache
def make_quantize_kernel(format_name, has_natural, has_transposed, GELU):
    """The quantize_kernel that writes one or both of its results, of a tensor or of its GELU, in a format of gpu/float8.py."""
    narrow4, TOP = NARROW4[format_name], FORMATS[format_name].top

    @cuda.jit(cache=True)
    def quantize_kernel(natural, transposed, inverse_scale, inp, largest):
        """A block takes a tile of TILE x TILE elements, a thread 4 rows of 16 columns of it."""
        tile = cuda.shared.array(TILE_WORDS, uint32)  # [column, rows / 4]: the tile's transpose
        x = cuda.local.array(PER_THREAD, float32)
        words = cuda.local.array(WORDS, uint32)
        N, C = inp.shape
        thread = cuda.threadIdx.x
        row0, col0 = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
        row_group, column_group = thread // ROW_THREADS, thread % ROW_THREADS
        row, col = row0 + row_group * ROWS, col0 + column_group * COLUMNS
        bits = scale_bits(magnitude_bits(largest[0]), TOP)
        if thread == 0 and row0 == 0 and col0 == 0:
            inverse_scale[0] = float_of_bits(uint32(inverse_bits(bits)))
        scale = float_of_bits(uint32(bits))
        if row < N and col < C:
            for r in range(ROWS):
                load8(inp, (row + r) * C + col, x, r * COLUMNS)
                load8(inp, (row + r) * C + col + WIDTH, x, r * COLUMNS + WIDTH)
            if GELU:
                for i in range(PER_THREAD):
                    x[i] *= logistic_of_2u(x[i])
                for i in range(0, PER_THREAD, WIDTH):
                    round8(inp, x, i)  # to 16 bits first, as the GELU's own kernel does
            for i in range(PER_THREAD):
                x[i] *= scale
            if has_natural:
                for r in range(ROWS):
                    for w in range(WORDS):
                        i = r * COLUMNS + 4 * w
                        words[w] = narrow4(x[i], x[i + 1], x[i + 2], x[i + 3])
                    store16(natural, (row + r) * C + col, words)
            if has_transposed:
                for c in range(COLUMNS):
                    tile[column_group * COLUMNS + c, row_group] = narrow4(x[c], x[COLUMNS + c], x[2 * COLUMNS + c], x[3 * COLUMNS + c])
        if has_transposed:
            cuda.syncthreads()
            for i in range(thread, TILE * ROW_THREADS, THREADS):
                c, part = i // ROW_THREADS, i % ROW_THREADS  # 16 rows of one column
                if col0 + c < C and row0 + part * COLUMNS < N:
                    for w in range(WORDS):
                        words[w] = tile[c, part * WORDS + w]
                    store16(transposed, (col0 + c) * N + row0 + part * COLUMNS, words)

    return quantize_kernel


# -------------------------------------------------------------------------------------------------------- launchers


def find_largest(largest, inp, gelu=False):
    """largest = the larger of it and the largest |inp|, or |GELU(inp)|. NaN counts as the largest of all.

    largest [+] (1,) float32   inp [r] (N, C) float32 or bfloat16, N * C a multiple of 8
    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays("find_largest", {"N": N, "C": C, "1": 1}, inp=(inp, "N C"), largest=(largest, "f32 1"))
    check_on_device("find_largest", inp, "find_largest_ref")
    blocks = min(LARGEST_BLOCKS, ceil_div(N * C, LARGEST_THREADS * WIDTH))
    make_largest_kernel(gelu)[blocks, LARGEST_THREADS, compute_stream()](largest, inp)


# Parameters: two results, a scale, what they are computed from, and how.
def quantize(natural, transposed, inverse_scale, inp, largest, form, gelu=False):
    """Round a tensor, or its GELU, to eight bits, as it lies and transposed. Arguments as in the table above; form: of gpu/float8.py.

    Raises ValueError or TypeError if a shape or type does not fit.
    """
    N, C = inp.shape
    check_arrays(
        "quantize", {"N": N, "C": C, "1": 1},
        inp=(inp, "N C"), natural=(natural, "u8 N C"), transposed=(transposed, "u8 C N"), inverse_scale=(inverse_scale, "f32 1"),
        largest=(largest, "f32 1"),
    )  # fmt: skip
    check_on_device("quantize", inp, "quantize_ref")
    if N % MULTIPLE or C % MULTIPLE:
        raise ValueError(f"quantize: N and C must be multiples of {MULTIPLE}, got {N} and {C}")
    kernel = make_quantize_kernel(form.name, natural is not None, transposed is not None, gelu)
    any_result = natural if transposed is None else transposed  # a kernel cannot take None: any array will do
    natural, transposed = (any_result if result is None else result for result in (natural, transposed))
    grid = ceil_div(C, TILE), ceil_div(N, TILE)
    kernel[grid, THREADS, compute_stream()](
        natural, transposed, inverse_scale, inp, largest
    )  # a kernel cannot take None: any array will do
