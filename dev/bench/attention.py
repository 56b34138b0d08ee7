"""Attention alone: every engine against the reference, then its time at full sizes, compared with PyTorch's if PyTorch is installed.

    python -m dev.bench.attention [--json FILE] [--sweep]

First the check, on the inputs that are timed (standard normal): the largest error of a query's or key's row, relative to the row, in the
first and the last sequence, and that a second run gives the same bits everywhere. Then the times: `burst` is the median of 30 calls with
a cold cache, `sustained` the mean of 100 consecutive calls, each replayed as a CUDA graph, so that the host is not the bottleneck. cuDNN
is measured if it is installed. --sweep times other tile sizes of mma.py instead.
"""

import json
import statistics
import sys
import time
from functools import partial

import numpy as np
from numba import cuda

from dev.bench.clock import mark, milliseconds, time_call
from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    FLOAT32,
    bfloat16_bits,
    bfloat16_values,
    device_name,
    device_properties,
    real_gpu,
    synchronize,
    to_device,
)
from gpt2_numba.gpu.graph import Graphs
from gpt2_numba.gpu.shared_memory import launch_with_shared_memory
from gpt2_numba.integers import ceil_div
from gpt2_numba.layers import attention
from gpt2_numba.layers.fast.attention import cudnn, matmuls, mma, tf32, wgmma

ENGINES = {  # name -> module, storage type
    "wgmma": (wgmma, BFLOAT16_BITS),
    "mma": (mma, BFLOAT16_BITS),
    "cudnn": (cudnn, BFLOAT16_BITS),
    "tf32": (tf32, FLOAT32),
    "matmuls": (matmuls, FLOAT32),
}
# (B, T, NH, HS) -> engines. Awkward sizes, only checked; cuDNN is not tried with a single token.
CHECKED = {
    (2, 333, 3, 64): ("wgmma", "mma", "cudnn", "tf32", "matmuls"),
    (1, 1, 1, 64): ("wgmma", "mma", "tf32", "matmuls"),
    (3, 77, 2, 80): ("mma", "cudnn"),
    (1, 130, 2, 128): ("mma", "cudnn"),
}
# GPT-2 1558M and 124M as they are trained, the larger heads of GPT-3, and 124M in fp32.
TIMED = {
    (16, 1024, 25, 64): ("wgmma", "mma", "cudnn", "tf32", "torch"),
    (64, 1024, 12, 64): ("wgmma", "mma", "cudnn", "tf32", "torch"),
    (8, 1024, 16, 128): ("mma", "cudnn", "torch"),
    (8, 1024, 32, 80): ("mma", "cudnn", "torch"),
    (16, 1024, 12, 64): ("tf32", "matmuls"),
}
LONGEST_SHAPE = 20  # seconds, including the compilation of its kernels: no shape is started with less time left
SUSTAINED_CALLS, WARM_UP_CALLS = 100, 20
NAN = {FLOAT32: np.nan, BFLOAT16_BITS: 0x7FC0}
# Largest error of a row relative to the row. bfloat16: half a unit in the last place is 2^-9 on average, for the weights and again for the
# stored result; a gradient is a difference, so its row may be several times smaller than its terms. Rows smaller than a twentieth of the
# usual length count as that long. For TF32 it is 2^-11.
ALLOWED = {"out": 2.0**-6, "dqkv": 2.0**-5, "lse": 2e-5}
ALLOWED_TF32_LSE = 1e-2


def usable(name):
    """Whether an engine can run on this GPU."""
    return {"wgmma": device_properties()[0] == (9, 0), "cudnn": cudnn.cudnn_available(), "torch": False}.get(name, True)


def make_inputs(shape, seed=1):
    """Storage type -> (qkv, dout): standard normal, in bfloat16 and the same values in float32."""
    B, T, NH, HS = shape
    normal = np.random.default_rng(seed).standard_normal
    bits = [bfloat16_bits(normal((B * T, columns * NH * HS), np.float32)) for columns in (3, 1)]
    return {BFLOAT16_BITS: bits, FLOAT32: [bfloat16_values(array) for array in bits]}


def device_arrays(shape, storage, qkv, dout, scratch_size):
    """Device arrays by name: out, lse and dqkv full of NaN, and qkv, dout and scratch."""
    B, T, NH, HS = shape
    N, C = B * T, NH * HS
    written = {"out": ((N, C), storage), "lse": ((B, NH, T), FLOAT32), "dqkv": ((N, 3 * C), storage)}
    arrays = {name: to_device(np.full(size, NAN[dtype], dtype)) for name, (size, dtype) in written.items()}
    return arrays | {"qkv": to_device(qkv), "dout": to_device(dout), "scratch": cuda.device_array(int(scratch_size), FLOAT32)}


def make_calls(module, a):
    """Forward and backward as functions without arguments."""
    return (
        partial(module.attention_forward, a["out"], a["lse"], a["qkv"], a["scratch"]),
        partial(module.attention_backward, a["dqkv"], a["dout"], a["out"], a["lse"], a["qkv"], a["scratch"]),
    )


def end_sequences(array, B):
    """The first and the last of B sequences as float32: (2 T, columns) of rows, (2, NH, T) of lse."""
    sequences = array.reshape(B, -1, *array.shape[1:])
    ends = np.concatenate([sequences[0], sequences[-1]])
    return bfloat16_values(ends) if ends.dtype == BFLOAT16_BITS else ends


def row_error(got, expected, width):
    """The largest error of a row of `width` values (one head of one token), relative to the length of the row."""
    got, expected = got.reshape(-1, width), expected.reshape(-1, width)
    lengths = np.sqrt(np.square(expected).sum(axis=1))
    usual = np.sqrt(np.square(lengths).mean())
    errors = np.sqrt(np.square(got - expected).sum(axis=1)) / np.maximum(lengths, usual / 20)
    return float(np.where(np.isfinite(errors), errors, np.inf).max())


def check(shape, name, inputs):
    """Check an engine and print a line with the errors. Returns the device arrays, and whether all is correct."""
    B, T, NH, HS = shape
    module, storage = ENGINES[name]
    a = device_arrays(shape, storage, *inputs[storage], module.scratch_size(B, T, NH, HS))
    results = []
    for _ in range(2):
        for call in make_calls(module, a):
            call()
        synchronize()
        results.append({key: a[key].copy_to_host() for key in ("out", "lse", "dqkv")})
    same = all(np.array_equal(results[0][key].view(np.uint8), results[1][key].view(np.uint8)) for key in results[0])

    got = {key: end_sequences(array, B) for key, array in results[0].items()}
    qkv, dout = (end_sequences(array, B) for array in inputs[FLOAT32])
    expected = {key: np.empty_like(array) for key, array in got.items()}
    attention.attention_forward(expected["out"], expected["lse"], qkv)
    attention.attention_backward(expected["dqkv"], dout, got["out"], got["lse"], qkv)  # given the kernels' own out and lse
    errors = {key: row_error(got[key], expected[key], HS) for key in ("out", "dqkv")}
    errors["lse"] = float(np.abs(got["lse"] - expected["lse"]).max())
    allowed = ALLOWED | ({"lse": ALLOWED_TF32_LSE} if storage == FLOAT32 else {})
    right = same and all(errors[key] <= allowed[key] for key in errors)
    shown = ", ".join(f"{key} {error:.1e}" for key, error in errors.items())
    print(f"{shape!s:<22}{name:<14}{shown}, bits {'repeat' if same else 'DIFFER'}: {'ok' if right else 'WRONG'}", flush=True)
    return a, right


def sustained(call, key):
    """Milliseconds per call of many calls back to back."""
    graphs = Graphs(enabled=True)
    for calls in (WARM_UP_CALLS, SUSTAINED_CALLS):
        for _ in range(3 if calls == WARM_UP_CALLS else 0):  # launch by launch, recorded, replayed
            graphs.run(key, call)
        start = mark()
        for _ in range(calls):
            graphs.run(key, call)
        stop = mark()
    synchronize()
    return milliseconds(start, stop) / SUSTAINED_CALLS


def time_engine(shape, name, arrays):
    row = {"shape": shape, "engine": name}
    for direction, call in zip(("forward", "backward"), make_calls(ENGINES[name][0], arrays)):
        row[direction] = statistics.median(time_call(call))
        row[f"{direction}_sustained"] = sustained(call, (shape, name, direction))
    return row


def time_torch(shape, qkv, dout):
    """Rows for PyTorch's fused engines; none if it is not installed."""
    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:
        return []
    B, T, NH, HS = shape
    rows = []
    packed = torch.from_numpy(qkv).to("cuda", torch.bfloat16).reshape(B, T, 3, NH, HS).permute(2, 0, 3, 1, 4)
    q, k, v = (part.detach().requires_grad_() for part in packed)
    upstream = torch.from_numpy(dout).to("cuda", torch.bfloat16).reshape(B, T, NH, HS).transpose(1, 2)
    other = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")

    def measure(call):
        def marked(calls, flush):
            times = []
            for _ in range(calls):
                if flush:
                    other.zero_()
                start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                for _ in range(1 if flush else SUSTAINED_CALLS):
                    call()
                stop.record()
                times.append((start, stop))
            torch.cuda.synchronize()
            return statistics.median(a.elapsed_time(b) for a, b in times)

        for _ in range(WARM_UP_CALLS):
            call()
        return marked(30, True), marked(1, False) / SUSTAINED_CALLS

    for name, backend in (("torch FA2", SDPBackend.FLASH_ATTENTION), ("torch cuDNN", SDPBackend.CUDNN_ATTENTION)):
        try:
            with sdpa_kernel(backend):

                def forward():
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

                out = forward()
                row = {"shape": shape, "engine": name}
                row["forward"], row["forward_sustained"] = measure(forward)
                row["backward"], row["backward_sustained"] = measure(
                    partial(torch.autograd.grad, out, (q, k, v), upstream, retain_graph=True)
                )
            rows.append(row)
        except RuntimeError as error:
            print(f"{name} at {shape}: {str(error).splitlines()[0]}", file=sys.stderr)
    return rows


def print_table(rows):
    print(f"\n{'B, T, NH, HS':<22}{'engine':<14}{'forward ms':>12}{'sustained':>11}{'backward ms':>13}{'sustained':>11}{'TFLOP/s':>9}")
    for row in rows:
        B, T, NH, HS = row["shape"]
        flop = 7 * 2 * B * NH * T * T * HS / 2  # two products forward, five backward, over the causal triangle
        rate = flop / (row["forward_sustained"] + row["backward_sustained"]) / 1e9
        print(
            f"{row['shape']!s:<22}{row['engine']:<14}{row['forward']:>12.3f}{row['forward_sustained']:>11.3f}"
            f"{row['backward']:>13.3f}{row['backward_sustained']:>11.3f}{rate:>9.0f}"
        )


# ----------------------------------------------------------------------------------------------------------- tile sizes

CANDIDATES = {  # warps, 16-row tiles per warp, rows of a tile in the ring, resident blocks per multiprocessor
    "forward": [
        (4, 2, 64, 2),
        (4, 2, 32, 2),
        (4, 1, 64, 3),
        (4, 1, 64, 4),
        (4, 1, 128, 2),
        (8, 1, 64, 2),
        (8, 2, 64, 1),
        (4, 1, 64, 2),
        (4, 1, 32, 3),
    ],
    "backward_queries": [(4, 1, 64, 3), (4, 1, 64, 2), (4, 1, 32, 4), (4, 1, 32, 3), (4, 2, 32, 2), (8, 1, 64, 1), (4, 1, 32, 2)],
    "backward_keys": [(4, 1, 64, 2), (4, 1, 32, 3), (4, 1, 32, 2), (4, 2, 32, 2), (8, 1, 64, 1), (8, 1, 32, 1), (4, 1, 16, 3)],
}


def sweep():
    """Time the CANDIDATES. Returns rows: kernel, head size, tile sizes, burst ms, registers, local memory (0 unless registers spill)."""
    rows = []
    for shape in ((16, 1024, 25, 64), (8, 1024, 16, 128), (8, 1024, 32, 80), (8, 1024, 16, 96)):
        B, T, NH, HS = shape
        a = device_arrays(shape, BFLOAT16_BITS, *make_inputs(shape)[BFLOAT16_BITS], mma.scratch_size(B, T, NH, HS))
        forward, backward = make_calls(mma, a)
        forward()
        backward()
        delta = a["scratch"][: B * NH * T].reshape(B, NH, T)
        for kernel_name, candidates in CANDIDATES.items():
            make = getattr(mma, f"make_{kernel_name}_kernel")
            arguments = [a["out"], a["lse"], a["qkv"]] if kernel_name == "forward" else [a["dqkv"], a["dout"], a["lse"], delta, a["qkv"]]
            for sizes in candidates:
                kernel, threads, block_rows, nbytes = make(HS, sizes)
                if nbytes > 227 << 10:
                    continue
                grid = (ceil_div(T, block_rows), B * NH)
                try:
                    times = time_call(partial(launch_with_shared_memory, kernel, grid, threads, nbytes, *arguments))
                except Exception as error:  # noqa: BLE001  too many resources requested; several libraries may raise
                    print(kernel_name, shape, sizes, str(error).splitlines()[0], file=sys.stderr)
                    continue
                (overload,) = kernel.overloads.values()
                row = {"kernel": kernel_name, "HS": HS, "sizes": sizes, "ms": statistics.median(times)}
                row |= {"registers": overload.regs_per_thread, "local": overload.local_mem_per_thread}
                rows.append(row)
                print(
                    f"{kernel_name:<18}{HS:>4} {sizes!s:<16}{row['ms']:8.3f} ms{row['registers']:>5} registers, local {row['local']}",
                    flush=True,
                )
    return rows


def measure(seconds):
    """Check and time all engines. Returns the rows of the table, and whether all is correct."""
    began, rows, all_right = time.perf_counter(), [], True
    for shape, names in [*CHECKED.items(), *TIMED.items()]:
        if time.perf_counter() - began > seconds - LONGEST_SHAPE:
            print(f"{shape}: skipped, no time left")
            continue
        inputs = make_inputs(shape)
        for name in filter(usable, names):
            try:
                arrays, right = check(shape, name, inputs)
            except UserError as error:  # cuDNN does not support these sizes
                print(f"{shape!s:<22}{name:<14}skipped: {error}")
                continue
            all_right &= right
            if shape in TIMED:
                rows.append(time_engine(shape, name, arrays))
        if "torch" in names:
            rows += time_torch(shape, *inputs[FLOAT32])
    return rows, all_right


def run(argv):
    """Check and measure. Returns the exit code: 1 if a result is wrong."""
    parser = Parser(prog="python -m dev.bench.attention", doc=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--sweep", action="store_true", help="time other tile sizes of mma.py instead")
    parser.add_argument("--seconds", type=float, default=115, help="time limit in seconds; shapes that do not fit are skipped (115)")
    arguments = parser.parse_args(argv)
    if not real_gpu():
        raise UserError(
            "python -m dev.bench.attention times attention on a GPU, and there is none here: python -m gpt2_numba.doctor says more"
        )
    print(device_name())
    began, all_right = time.perf_counter(), True
    if arguments.sweep:
        rows = sweep()
    else:
        rows, all_right = measure(arguments.seconds)
        print_table(rows)
    print(f"{time.perf_counter() - began:.0f} s")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"gpu": device_name(), "rows": rows}, file, indent=1)
    return 0 if all_right else 1


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
