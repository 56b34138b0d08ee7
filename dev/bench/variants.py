"""Other forms of the memory-bound kernels beside the package's own: checked at the sizes of GPT-2, then timed in turns.

    python -m dev.bench.variants [layernorm_backward encoder_forward ...] [--models d12,d48] [--json FILE]

The forms are in dev/kernels/*_variants.py. Every function and model is a process of its own, so that all compile and check at once, on as
many cores; when the last has finished, they measure one after the other. The check is that of layer_checks at the model's full size: guard
cells, NaN in outputs, the reference's bounds, the same bits twice; and the table says whether the bits are those of the package's kernel.

Times are medians of single calls with a cold cache, as in the ruler: *cool* after a copy of other data; *hot* after a millisecond of matrix
products, at the clock that these leave, which is that of a training step. The share is that of the copy rate, measured in the same run:
bytes by the formulas of costs.py.

Without a GPU (NUMBA_ENABLE_CUDASIM=1) the forms are checked at small sizes, in one process, and not timed.
"""

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
from numba import cuda

from dev.bench.clock import empty_mark, flush_cache, hold, mark, milliseconds, time_call
from dev.bench.costs import launch_cost
from dev.kernels import attention_variants, encoder_variants, layernorm_variants, sums_variants
from dev.kernels.layernorm_variants import OverlappedShape
from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.config import parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.gpu import reductions
from gpt2_numba.gpu.backend import (
    BFLOAT16_BITS,
    SIMULATING,
    compute_stream,
    copy_to_host,
    device_name,
    real_gpu,
    require_gpu,
    synchronize,
    to_device,
    to_storage,
)
from gpt2_numba.layer_checks import GUARD, UNIT, GuardedArray, Sizes, compare, kernel_calls
from gpt2_numba.layer_checks.calls import Call, changed, read, scratch, written
from gpt2_numba.layer_checks.rows import as_float
from gpt2_numba.layer_checks.running import run_on_host
from gpt2_numba.layer_checks.tolerances import summation_error
from gpt2_numba.layers.fast import encoder, global_norm, layernorm, matmul
from gpt2_numba.layers.fast.attention import wgmma
from gpt2_numba.parallel.shards import Sharing

COPY_BYTES = 1 << 30
TODAY = "today"
ROUNDS = 15  # of hot calls
LONGEST_WAIT = 150  # seconds for a process to check or to measure
HOT_BEFORE, HOT_BETWEEN = 100, 1  # milliseconds of matrix products
SMALL = Sizes(B=2, T=6, C=264, NH=3, V=101, Vp=128, OC=264)  # in the simulator
SIZES = {  # one micro-step of GPT-2 124M and 1558M
    "d12": Sizes(B=64, T=1024, C=768, NH=12, V=50257, Vp=50304, OC=2304),
    "d48": Sizes(B=16, T=1024, C=1600, NH=25, V=50257, Vp=50304, OC=4800),
    "small": SMALL,
}


# ------------------------------------------------------------------------------------------------------ the variants


def variants(function, model):
    """Name -> launcher with the arguments of the package's: the package's own first."""
    return {TODAY: TODAYS[function]} | VARIANTS[function].get(model, {})


def _overlapped(*shape):
    return partial(layernorm_variants.overlapped, shape=OverlappedShape(*shape))


def _teams(*shape):
    return partial(layernorm_variants.teams, shape=shape)


def _forward(function, warps, rows=1):
    return partial(getattr(layernorm_variants, function), warps=warps, rows=rows)


def _forwards(function):
    return {
        "d12": {"one warp, 4 rows": _forward(function, 1, 4), "one warp, 2 rows": _forward(function, 1, 2)},
        "d48": {
            "one warp, 4 rows": _forward(function, 1, 4),
            "one warp, 2 rows": _forward(function, 1, 2),
            "one warp, 1 row": _forward(function, 1, 1),
            "one meeting, 2 warps": _forward(function, 2),
            "one meeting, 4 warps": _forward(function, 4),
            "one meeting, 7 warps": _forward(function, 7),
        },
        "small": {"one warp, 2 rows": _forward(function, 1, 2), "one meeting, 2 warps": _forward(function, 2)},
    }


def _bias(loads, accumulate=reductions.accumulate_partials):
    return partial(sums_variants.bias_backward, loads=loads, accumulate=accumulate)


def attention_then_bias(dqkv, dbias, dout, out, lse, qkv, scratch, sums):
    """As in a training step: attention's backward pass, then the bias gradient of qkv."""
    wgmma.attention_backward(dqkv, dout, out, lse, qkv, scratch)
    matmul.bias_backward(dbias, dqkv, sums)


def attention_with_sums(dqkv, dbias, dout, out, lse, qkv, scratch, sums, *, accumulate=reductions.accumulate_partials):
    """The same with the sums in attention's own kernels."""
    attention_variants.attention_backward_with_sums(dqkv, dbias, dout, out, lse, qkv, scratch, accumulate=accumulate)


BIASES = {
    "pipelined, 4": _bias(4),
    "pipelined, 8": _bias(8),
    "pipelined, 4, early": _bias(4, sums_variants.accumulate_partials),
    "pipelined, 8, early": _bias(8, sums_variants.accumulate_partials),
}
WITH_SUMS = {
    "with sums": attention_with_sums,
    "with sums, early": partial(attention_with_sums, accumulate=sums_variants.accumulate_partials),
}
EARLY = {"early": sums_variants.accumulate_partials}
SQUARES = {"block range": sums_variants.sum_of_squares, "block range, 8 loads": partial(sums_variants.sum_of_squares, vectors=8)}
TODAYS = {
    "layernorm_backward": layernorm.layernorm_backward,
    "layernorm_backward teams": layernorm.layernorm_backward,
    "layernorm_forward": layernorm.layernorm_forward,
    "residual_layernorm_forward": layernorm.residual_layernorm_forward,
    "encoder_forward": encoder.encoder_forward,
    "encoder_backward": encoder.encoder_backward,
    "attention_backward bias": attention_then_bias,
    "bias_backward": matmul.bias_backward,
    "bias_backward fc": matmul.bias_backward,
    "accumulate_partials": reductions.accumulate_partials,
    "sum_of_squares": global_norm.sum_of_squares,
    "sum_of_squares half": global_norm.sum_of_squares,
}
VARIANTS = {  # function -> model -> name -> launcher
    "layernorm_backward": {  # overlapped (warps per row, teams per block, blocks per multiprocessor, comparisons with C left out)
        "d12": {
            "overlapped 1 8 2": _overlapped(1, 8, 2, False),
            "overlapped 1 8 2, folded": _overlapped(1, 8, 2, True),
            "overlapped 3 6 1, folded": _overlapped(3, 6, 1, True),
        },
        "d48": {
            "overlapped 1 8 1": _overlapped(1, 8, 1, False),
            "overlapped 1 8 1, folded": _overlapped(1, 8, 1, True),
            "overlapped 2 6 1, folded": _overlapped(2, 6, 1, True),
            "overlapped 3 5 1, folded": _overlapped(3, 5, 1, True),
            "overlapped 4 4 1, folded": _overlapped(4, 4, 1, True),
            "overlapped 4 5 1": _overlapped(4, 5, 1, False),
        },
        "small": {"overlapped 1 2 1": _overlapped(1, 2, 1, False), "overlapped 2 2 1, folded": _overlapped(2, 2, 1, True)},
    },
    "layernorm_backward teams": {  # (teams per block, rows at a time, times as many rows ahead, blocks per multiprocessor)
        "d12": {
            "teams 6 1 3 1": _teams(6, 1, 3, 1),
            "teams 5 2 2 1": _teams(5, 2, 2, 1),
            "teams 4 4 1 1": _teams(4, 4, 1, 1),
            "teams 1 2 2 5": _teams(1, 2, 2, 5),
        },
        "d48": {
            "teams 2 1 3 1": _teams(2, 1, 3, 1),
            "teams 2 2 2 1": _teams(2, 2, 2, 1),
            "teams 1 4 2 1": _teams(1, 4, 2, 1),
            "teams 1 2 2 2": _teams(1, 2, 2, 2),
        },
        "small": {"teams 2 1 1 1": _teams(2, 1, 1, 1), "teams 1 2 1 2": _teams(1, 2, 1, 2)},
    },
    "layernorm_forward": _forwards("layernorm_forward"),
    "residual_layernorm_forward": _forwards("residual_layernorm_forward"),
    "encoder_forward": {
        model: {f"rows at once, {n}": partial(encoder_variants.rows_at_once, sequences=n) for n in counts}
        for model, counts in {"d12": (1, 2, 4), "d48": (1, 2), "small": (1, 2)}.items()
    },
    "encoder_backward": {
        model: {f"whole rows, {n}": partial(encoder_variants.whole_rows, rows=n) for n in counts}
        for model, counts in {"d12": (2, 4), "d48": (1, 2), "small": (1, 2)}.items()
    },
    "attention_backward bias": {"d12": WITH_SUMS, "d48": WITH_SUMS},
    "bias_backward": {"d12": BIASES, "d48": BIASES, "small": BIASES},
    "bias_backward fc": {"d12": BIASES, "d48": BIASES},
    "accumulate_partials": {"d12": EARLY, "d48": EARLY, "small": EARLY},
    "sum_of_squares": {"d12": SQUARES, "small": SQUARES},
    "sum_of_squares half": {"d12": SQUARES},
}


# ------------------------------------------------------------------------------------------------ what they are called with


def _normal():
    standard_normal = np.random.default_rng(731).standard_normal
    return lambda *shape: standard_normal(shape, np.float32)


def layer_call(layer, name, parameters):
    """A function of the sizes: the Call of layer_checks with this name, and what its function takes from its arrays."""

    def build(s):
        call = next(call for call in kernel_calls(layer, s, BFLOAT16_BITS) if call.name == name)
        return call, lambda a: tuple(a.T if parameter == "T" else getattr(a, parameter) for parameter in parameters.split())

    return build


def bias_call(columns):
    """columns: of dout, as a function of the sizes."""

    def build(s):
        normal, OC = _normal(), columns(s)
        call = Call(
            "bias_backward", "bias gradient",
            dict(dbias=changed(normal(OC)), dout=read(normal(s.N, OC)), scratch=scratch(matmul.matmul_scratch_size(OC), kind="f32")),
            None,
            lambda after, before, storage: {
                "dbias": summation_error(s.N, np.sqrt(np.einsum("nc,nc->c", before.dout, before.dout)) + np.abs(before.dbias))
            },
            lambda a: np.add(a.dbias, a.dout.sum(axis=0), out=a.dbias),
        )  # fmt: skip
        return call, lambda a: (a.dbias, a.dout, a.scratch)

    return build


def partials_call(s):
    """As after layernorm_backward."""
    normal, names = _normal(), ("dweight", "dbias", "dinp_sums")
    chunks, _ = layernorm.backward_blocks(s.C)

    def reference(a):
        for i, name in enumerate(names):
            getattr(a, name)[:] += a.partials.reshape(chunks, 3, s.C)[:, i].sum(axis=0)

    def errors(after, before, storage):
        squares = np.square(before.partials.reshape(chunks, 3, s.C)).sum(axis=0)
        return {name: summation_error(chunks, np.sqrt(squares[i]) + np.abs(getattr(before, name))) for i, name in enumerate(names)}

    tensors = {name: changed(normal(s.C)) for name in names} | dict(partials=read(normal(chunks * 3 * s.C), "f32"))
    call = Call("accumulate_partials", "partial sums", tensors, None, errors, reference)
    return call, lambda a: ([a.dweight, a.dbias, a.dinp_sums], a.partials, chunks)


def squares_call(ranks):
    """The squares of rank 0's part of the gradients, with ZeRO on `ranks` GPUs. At most GPT-2 124M's number of gradients, or a tenth."""

    def build(s):
        normal = _normal()
        config = parse_descriptor("d12" if not SIMULATING else "L=2,NH=2,C=16,T=8,V=37")
        ranges = Sharing(config, 0, ranks, 1 if ranks > 1 else 0).norm_ranges()
        count = int((ranges[:-1, 2] + np.diff(ranges[:, 0])).max())
        chosen = np.concatenate([np.arange(at, at + length) for at, length in zip(ranges[:-1, 2], np.diff(ranges[:, 0]))])
        grads = normal(count)

        def total(after, before, results):
            after.partials = as_float(results["partials"]).astype(np.float64)  # which square goes where is the kernel's affair
            expected, got = float(np.square(before.grads[chosen]).sum()), float(after.partials.sum())
            assert abs(got - expected) <= summation_error(1000, expected), f"Σ grads²: got {got}, expected {expected}"

        tensors = dict(partials=written(global_norm.BLOCKS, kind="f32"), grads=read(grads), ranges=read(ranges, "i64"))
        errors = lambda after, before, storage: {"partials": np.abs(after.partials) * UNIT}  # noqa: E731
        call = Call("sum_of_squares", "sum of squares", tensors, None, errors, lambda a: None, from_stored=total)
        return call, lambda a: (a.partials, a.grads, a.ranges)

    return build


def attention_call(s):
    """Attention's backward pass and the bias gradient of qkv. dqkv must have the bits of the first form that runs, the package's."""
    normal, todays = _normal(), {}
    shapes = dict(qkv=(s.N, 3 * s.C), out=(s.N, s.C), lse=(s.B, s.NH, s.T), dout=(s.N, s.C))
    values = {name: normal(*shapes[name]) for name in ("qkv", "dout")}
    qkv, out, lse = (
        to_device(values["qkv"], BFLOAT16_BITS),
        *(cuda.device_array(shapes[name], kind) for name, kind in (("out", BFLOAT16_BITS), ("lse", np.float32))),
    )
    wgmma.attention_forward(out, lse, qkv, None)
    values |= {"out": as_float(copy_to_host(out)), "lse": copy_to_host(lse)}

    def stored_sums(after, before, results):
        after.dqkv = as_float(todays.setdefault("dqkv", results["dqkv"]))
        after.dbias = before.dbias + as_float(results["dqkv"]).sum(axis=0, dtype=np.float64)

    def errors(after, before, storage):
        squares = np.einsum("nc,nc->c", after.dqkv, after.dqkv)
        return {"dbias": summation_error(s.N, np.sqrt(squares) + np.abs(before.dbias))}

    tensors = dict(
        dqkv=written(s.N, 3 * s.C), dbias=changed(normal(3 * s.C)), dout=read(values["dout"]), out=read(values["out"]),
        lse=read(values["lse"], "f32"), qkv=read(values["qkv"]), scratch=scratch(s.B * s.NH * s.T, kind="f32"),
        sums=scratch(matmul.matmul_scratch_size(3 * s.C), kind="f32"),
    )  # fmt: skip
    call = Call("attention_backward", "attention and bias", tensors, None, errors, lambda a: None, from_stored=stored_sums)
    return call, lambda a: tuple(getattr(a, name) for name in tensors)


BACKWARD = layer_call("layernorm", "layernorm backward with sums", "dinp dweight dbias dout inp weight mean rstd scratch dinp_sums")
CALLS = {  # function -> sizes -> (Call, its arguments from its arrays)
    "layernorm_backward": BACKWARD,
    "layernorm_backward teams": BACKWARD,
    "layernorm_forward": layer_call("layernorm", "layernorm forward", "out mean rstd inp weight bias"),
    "residual_layernorm_forward": layer_call("layernorm", "residual layernorm forward", "residual out mean rstd inp branch weight bias"),
    "encoder_forward": layer_call("encoder", "encoder forward", "out tokens wte wpe"),
    "encoder_backward": layer_call("encoder", "encoder backward", "dwte dwpe dout places pieces scratch T"),
    "attention_backward bias": attention_call,
    "bias_backward": bias_call(lambda s: 3 * s.C),
    "bias_backward fc": bias_call(lambda s: 4 * s.C),
    "accumulate_partials": partials_call,
    "sum_of_squares": squares_call(1),
    "sum_of_squares half": squares_call(2),
}
# What costs.py calls the function, and its arguments by name. accumulate_partials has no formula: partials read once, results twice.
COST_NAMES = {"bias_backward": "bias_backward_kernel"}


@dataclass
class Case:
    """One function at one size: its arrays on the device, and what it must compute."""

    function: str
    sizes: Sizes

    def __post_init__(self):
        self.call, take = CALLS[self.function](self.sizes)
        self.arrays = {name: GuardedArray(tensor, BFLOAT16_BITS) for name, tensor in self.call.tensors.items()}
        views = {name: guarded.array for name, guarded in self.arrays.items()}
        self.arguments = take(SimpleNamespace(**views, T=self.sizes.T))
        self.views = views
        self.reference = self.bounds = self.todays = None

    def bytes(self):
        """That must be moved, at least."""
        name = self.function.partition(" ")[0]
        if name == "accumulate_partials":
            return sum(view.nbytes * (1 if key == "partials" else 2) for key, view in self.views.items())
        if name == "sum_of_squares":
            ranges = self.call.tensors["ranges"].values
            return int(ranges[-1, 0]) * 2
        return launch_cost(SimpleNamespace(name=COST_NAMES.get(name, name), arguments=self.views | {"T": self.sizes.T})).bytes

    def run(self, launcher):
        """Fill what is written, launch. Returns name -> all cells, guards included, of every array."""
        for guarded in self.arrays.values():
            if guarded.tensor.access != "r":
                guarded.fill()
        launcher(*self.arguments)
        return {name: guarded.fetch() for name, guarded in self.arrays.items()}

    def problems(self, cells):
        """What a launch has changed that it must not change."""
        for name, stored in cells.items():
            guarded = self.arrays[name]
            pieces = [slice(None)] if guarded.tensor.access == "r" else [slice(GUARD), slice(-GUARD, None)]
            if not all(_same_bits(stored[piece], guarded.before[piece]) for piece in pieces):
                yield f"{name} {guarded.problem(stored)}"

    def check(self, name, launcher):
        """A dictionary: the largest error as a share of its bound, problems, and whether the bits are those of the package's kernel."""
        cells, again = self.run(launcher), self.run(launcher)
        problems = list(self.problems(cells))
        compared = [key for key, tensor in self.call.tensors.items() if tensor.access == "w"]
        if not all(_same_bits(cells[key], again[key]) for key in compared):
            problems.append("two runs differ")
        results = {key: cells[key][GUARD:-GUARD].reshape(self.call.tensors[key].shape) for key in compared}
        if name == TODAY:
            self.todays = results
        rows = list(self.compare(results))
        problems += [str(row) for row in rows if not row.ok]
        error = max((row.error / row.bound for row in rows if row.bound), default=0.0)
        return {"error": error, "problems": problems, "same": all(_same_bits(results[key], self.todays[key]) for key in compared)}

    def compare(self, results):
        """Yield a Row for each result. The reference's results and the bounds are computed once."""
        if self.reference is None:
            self.reference = run_on_host(self.call, BFLOAT16_BITS)
        after, before = self.reference
        if self.call.from_stored is not None:
            self.call.from_stored(after, before, results)
        if self.bounds is None:
            self.bounds = self.call.errors(after, before, BFLOAT16_BITS)
        for key, got in results.items():
            expected, dtype = getattr(after, key), self.call.tensors[key].dtype(BFLOAT16_BITS)
            if key not in self.bounds:  # a copy, or one addition: float64 rounded once has the same bits
                expected = as_float(to_storage(expected.astype(np.float32), dtype))
            yield compare(self.call.name, key, got, expected, self.bounds.get(key, 0.0), dtype)


def _same_bits(one, other):
    bits = f"u{one.dtype.itemsize}"
    return bool((one.view(bits) == other.view(bits)).all())


# ------------------------------------------------------------------------------------------------------------- timing


def time_in_turns(calls):
    """Milliseconds of each call: (cool, hot), two lists of medians."""
    cool = [statistics.median(time_call(call)) for call in calls]
    times = [[] for _ in calls]
    empty_ms = empty_mark()
    hold(HOT_BEFORE)
    for _ in range(ROUNDS):
        for call, own in zip(calls, times):
            hold(HOT_BETWEEN)
            flush_cache()
            start = mark()
            call()
            own.append((start, mark()))
    synchronize()
    return cool, [statistics.median(milliseconds(*pair) - empty_ms for pair in own) for own in times]


def registers(call):
    """Registers per thread of each kernel that a call launches, as text."""
    if SIMULATING:
        return "-"
    from numba.cuda.dispatcher import CUDADispatcher

    launched, start = [], CUDADispatcher.call

    def watched(self, *details):
        launched.append(self)
        return start(self, *details)

    with patch.object(CUDADispatcher, "call", watched):
        call()
    synchronize()

    def of(kernel):
        used = kernel.get_regs_per_thread()
        return max(used.values()) if isinstance(used, dict) else used

    with contextlib.suppress(Exception):
        return "+".join(str(of(kernel)) for kernel in launched)
    return "?"


def copy_rate():
    """Byte/s of a copy, reads and writes both counted."""
    destination, source = (cuda.device_array(COPY_BYTES, np.uint8) for _ in range(2))
    return 2 * COPY_BYTES / statistics.median(time_call(lambda: destination.copy_to_device(source, stream=compute_stream()))) * 1000


# ------------------------------------------------------------------------------------------------------------ processes


def work(function, model):
    """The process of one function and model: checks, prints a line of JSON, waits for a line, measures, prints another."""
    case = Case(function, SIZES[model])
    forms = variants(function, model)
    print(json.dumps({name: case.check(name, launcher) for name, launcher in forms.items()}), flush=True)
    if not sys.stdin.readline():
        return
    calls = [partial(launcher, *case.arguments) for launcher in forms.values()]
    cool, hot = time_in_turns(calls)
    used = [registers(call) for call in calls]
    print(json.dumps({name: times for name, *times in zip(forms, cool, hot, used)} | {"bytes": case.bytes()}), flush=True)


@dataclass
class Worker:
    """One process of `work`."""

    function: str
    model: str
    process: subprocess.Popen

    def answer(self):
        """The next line of JSON; None if the process has ended, or is ended here because none comes."""
        while select.select([self.process.stdout], [], [], LONGEST_WAIT)[0]:
            line = self.process.stdout.readline()
            if not line:
                return None
            if line.startswith("{"):  # a library may print something of its own
                return json.loads(line)
        self.process.kill()
        return None


def measure(jobs):
    """Check and measure all jobs, (function, model). Returns a list of dictionaries, one per variant."""
    started = time.perf_counter()

    def stage(text):
        print(f"[{time.perf_counter() - started:5.1f} s] {text}", flush=True)

    stage(f"{len(jobs)} processes compile and check")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    workers = [
        Worker(*job, subprocess.Popen(
            [sys.executable, "-m", "dev.bench.variants", "--work", ",".join(job)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        for job in jobs
    ]  # fmt: skip
    checks = []
    for worker in workers:
        checks.append(worker.answer())
        stage(f"{worker.function} {worker.model} {'checked' if checks[-1] else 'FAILED: its last words, if any, are above'}")
    rate = copy_rate()
    stage(f"copy rate {rate / 1e12:.3f} TB/s")
    rows = []
    for worker, checked in zip(workers, checks):
        if checked is None:
            continue
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.write("go\n")
            worker.process.stdin.flush()
        timed = worker.answer() or {}
        for name, check in checked.items():
            row = {"function": worker.function, "model": worker.model, "variant": name, **check}
            if name in timed:
                cool, hot, used = timed[name]
                row |= {"cool_ms": cool, "hot_ms": hot, "registers": used, "bytes": timed["bytes"], "copy_rate": rate}
            rows.append(row)
            print(format_row(row), flush=True)
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.close()
        worker.process.wait()
    stage(f"copy rate {copy_rate() / 1e12:.3f} TB/s afterwards")
    return rows


HEADER = (
    f"{'function':<27}{'model':<6}{'variant':<27}{'check':<11}{'bits':<6}"
    f"{'cool us':>9}{'GB/s':>7}{'share':>8}{'hot us':>9}{'share':>8}  registers"
)


def format_row(row):
    """One line of the table; a second one for problems."""
    verdict = "WRONG" if row["problems"] else f"ok {row['error']:.2f}"
    line = f"{row['function']:<27}{row['model']:<6}{row['variant']:<27}{verdict:<11}{'same' if row['same'] else 'other':<6}"
    if "cool_ms" in row:
        floor = row["bytes"] / row["copy_rate"] * 1000
        line += f"{row['cool_ms'] * 1000:>9.1f}{row['bytes'] / row['cool_ms'] / 1e6:>7.0f}{floor / row['cool_ms']:>8.1%}"
        line += f"{row['hot_ms'] * 1000:>9.1f}{floor / row['hot_ms']:>8.1%}  {row['registers']}"
    return "\n".join([line, *(f"    {problem}" for problem in row["problems"])])


def check_small(functions):
    """In the simulator. Returns rows without times."""
    rows = []
    for function in functions:
        if "small" not in VARIANTS[function]:
            continue
        case = Case(function, SIZES["small"])
        for name, launcher in variants(function, "small").items():
            rows.append({"function": function, "model": "small", "variant": name, **case.check(name, launcher)})
            print(format_row(rows[-1]), flush=True)
    return rows


def run(argv):
    """Check and time, and print the table. Returns the exit code: 1 if a result is wrong or a process has failed."""
    parser = Parser(prog="python -m dev.bench.variants", doc=__doc__)
    parser.add_argument("functions", nargs="*", metavar="function", help=f"some of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--models", default="d12,d48", help="some of d12, d48 and small, separated by commas (default: d12,d48)")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--work", help="for its own processes: function,model")
    settings = parser.parse_args(argv)
    if settings.work:
        return work(*settings.work.split(","))
    functions, models = settings.functions or list(VARIANTS), settings.models.split(",")
    if not set(functions) <= set(VARIANTS):
        raise UserError(f"functions must be some of {', '.join(VARIANTS)}, got {', '.join(functions)}")
    if not set(models) <= set(SIZES):
        raise UserError(f"--models must be some of {', '.join(SIZES)}, got {settings.models}")
    require_gpu()  # or the simulator
    print(f"{device_name() if real_gpu() else 'simulator'}\n{HEADER}", flush=True)
    jobs = [(function, model) for function in functions for model in models if model in VARIANTS[function]]
    rows = measure(jobs) if real_gpu() else check_small(functions)
    if settings.json:
        with open(settings.json, "w") as file:
            json.dump(rows, file, indent=1)
    complete = len({(row["function"], row["model"]) for row in rows}) == len(jobs) or not real_gpu()
    return 0 if complete and rows and not any(row["problems"] for row in rows) else 1


def main(argv):
    """The command line. Returns the exit code: 0, 1 if a result is wrong, 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
