"""Where the time of a generated token goes: on the GPU launch by launch, on the host, and what other kernels would take.

    python -m dev.bench.sampling_parts [--models d12,d48] [--batches 1,8] [--position 320] [--variants] [--json FILE]

The launches of a token are recorded as in a Decoder, in two ways: for a single text with one_row_forward; and with cuBLASLt's first
algorithm for each product, and LayerNorm, GELU and additions as kernels of their own. A recording is replayed again and again, and timed by
events. What a part takes is the difference to a recording without it: so every part finds the caches as it does in a token, and its share of
the gaps between launches is included. `--variants` changes the constants of one_row.py.

First of all the kernel is checked at the sizes of GPT-2, and the logits of the different ways are compared.
"""

import contextlib
import functools
import json
import time
from unittest import mock

import numpy as np

from dev.bench.clock import mark, milliseconds
from dev.bench.sampling import choosers, repeated_weights
from gpt2_numba import fused_layer_order, inference
from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.config import count_parameters, parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_values, compute_stream, device_name, real_gpu, synchronize
from gpt2_numba.gpu.graph import Graphs, driver_call
from gpt2_numba.gpu.kernel_cache import KernelCache
from gpt2_numba.inference import Decoder, ForwardModel
from gpt2_numba.layer_checks import Sizes, check_call, format_table
from gpt2_numba.layer_checks import one_row as one_row_checks
from gpt2_numba.layers.fast import one_row
from gpt2_numba.options import Options

SECONDS = 0.06  # for which a recording is replayed
ONE_ROW, LIBRARY = "one row", "cuBLASLt"  # the ways
VARIANTS = (dict(LOADS_IN_FLIGHT=2), dict(LOADS_IN_FLIGHT=8), dict(WARPS=4, BLOCKS=1056), dict(BLOCKS=264), dict(BLOCKS=1056))
CHECKED = ((FLOAT32, 768), (BFLOAT16_BITS, 768), (BFLOAT16_BITS, 1600))  # types and widths
ONE_ROW_PARTS = {
    "encoder": lambda name, a: name == "encoder_forward",
    "qkv": lambda name, a: name == "one_row_forward" and _output(a) == 3 * _input(a),
    "attention": lambda name, a: name == "attend",
    "attproj": lambda name, a: name == "one_row_forward" and "accumulate" in a and _output(a) == _input(a),
    "fc": lambda name, a: name == "one_row_forward" and "gelu" in a,
    "fcproj": lambda name, a: name == "one_row_forward" and "accumulate" in a and 4 * _output(a) == _input(a),
    "classifier": lambda name, a: name == "one_row_forward" and a["bias"] is None,
}
LIBRARY_PARTS = {
    "encoder": lambda name, a: name == "encoder_forward",
    "layernorms": lambda name, a: "layernorm" in name,
    "qkv": lambda name, a: name == "matmul_forward" and _output(a) == 3 * _input(a),
    "attention": lambda name, a: name == "attend",
    "attproj": lambda name, a: name == "matmul_forward" and _output(a) == _input(a),
    "fc": lambda name, a: name == "matmul_forward" and _output(a) == 4 * _input(a),
    "gelu": lambda name, a: name == "gelu_forward",
    "fcproj": lambda name, a: name == "matmul_forward" and 4 * _output(a) == _input(a),
    "classifier": lambda name, a: name == "matmul_forward" and a["bias"] is None,
}
LAUNCHERS = ("encoder_forward", "one_row_forward", "matmul_forward", "gelu_forward", "layernorm_forward", "residual_layernorm_forward")
PRODUCT = ("out", "inp", "weight", "bias")  # the first parameters of matmul_forward and one_row_forward


def _output(arguments):
    return arguments["weight"].shape[0]


def _input(arguments):
    return arguments["weight"].shape[1]


# ------------------------------------------------------------------------------------------------------- recordings


def record(work):
    """(the executable graph of what `work` launches, the number of its nodes). `work` must have been done once before."""
    from cuda.bindings import driver

    stream = int(compute_stream())
    driver_call("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    work()
    graph = driver_call("cuStreamEndCapture", stream)
    _, _, nodes = driver.cuGraphGetNodes(graph, 0)
    executable = driver_call("cuGraphInstantiate", graph, 0)
    driver_call("cuGraphDestroy", graph)
    return executable, nodes


def time_recorded(work):
    """(milliseconds of one replay, number of nodes). In the simulator: of one call, and 0."""
    work()
    if not real_gpu():
        begun = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - begun), 0
    executable, nodes = record(work)
    stream, repeats = int(compute_stream()), 10
    while True:
        start = mark()
        for _ in range(repeats):
            driver_call("cuGraphLaunch", executable, stream)
        stop = mark()
        synchronize()
        total = milliseconds(start, stop)
        if total > 1000 * SECONDS / 2:
            break
        repeats = max(2 * repeats, int(1000 * SECONDS / total * repeats))
    driver_call("cuGraphExecDestroy", executable)
    return total / repeats, nodes


@contextlib.contextmanager
def without(part):
    """A context in which launches for which part(name, arguments) is true are left out. Yields a list, to which each of them adds an entry."""
    left_out = []

    def wrap(name, function):
        def call(*arguments, **named):
            if part(name, dict(zip(PRODUCT, arguments)) | named):
                return left_out.append(name)
            function(*arguments, **named)

        return call

    with contextlib.ExitStack() as stack:
        for name in LAUNCHERS:
            stack.enter_context(mock.patch.object(fused_layer_order, name, wrap(name, getattr(fused_layer_order, name))))
        stack.enter_context(mock.patch.object(Decoder, "_attend", wrap("attend", Decoder._attend)))
        yield left_out


def one_token(decoder):
    """The launches of a token, as a function without arguments."""
    return lambda: decoder._forward(decoder._view, decoder._acts, decoder._attend)


def time_parts(decoder, parts):
    """(milliseconds of a token, nodes, part -> (microseconds of each launch, launches))."""
    whole, nodes = time_recorded(one_token(decoder))
    results = {}
    for name, part in parts.items():
        with without(part) as left_out:
            one_token(decoder)()
            launches = len(left_out)
            rest, _ = time_recorded(one_token(decoder))
        results[name] = (1000 * (whole - rest) / launches, launches)
    return whole, nodes, results


# ------------------------------------------------------------------------------------------------------- measurements


def checked():
    """Check the kernel at the sizes of GPT-2 124M and 1558M, the output layer with fewer channels. Returns True if it is correct."""
    normal, rows = np.random.default_rng(0).standard_normal, []
    for storage, width in CHECKED:
        products = (width, width, True), (width, 3 * width, True), (width, 4 * width, True), (4 * width, width, True), (width, 5120, False)
        for C, OC, has_bias in products:
            sizes = Sizes(B=1, T=2, C=C, NH=1, V=OC, Vp=OC, OC=OC)
            for call in one_row_checks.fast_calls(sizes, lambda *shape: normal(shape, np.float32), has_bias):
                rows += check_call(call, storage)
    print(format_table(rows))
    return all(row.ok for row in rows)


def make_decoder(model, B, way, prompt):
    """A Decoder that has read the prompt, and whose launches are those of a way."""
    decoder = Decoder(model, B)
    decoder._forward = fused_layer_order.forward_one_row if way == ONE_ROW else fused_layer_order.forward
    decoder.read(np.tile(np.array(prompt, np.int32), (B, 1)))
    return decoder


def host_times(decoder):
    """Part of a step on the host -> microseconds: everything up to the start of the launches; fetching, converting, choosing."""
    rounds = 200 if real_gpu() else 1
    choose, parts = choosers(decoder.B), {"launch": 0.0, "wait": 0.0, "convert": 0.0, "choose": 0.0, "step": 0.0}
    position, V = decoder.tokens.shape[1] - 1, decoder.model.config.V
    decoder.step([0] * decoder.B), decoder.step([0] * decoder.B)  # the second time they are recorded
    for _ in range(rounds):
        moments = [time.perf_counter()]
        decoder._inputs_mirror.send(decoder.tokens[:, position : position + 1])
        decoder._position_mirror.send(position)
        inference.copy_row(decoder._wpe_row, decoder.model.params.wpe, position)
        decoder.model.graphs.run(("one token", decoder.B), one_token(decoder))
        moments.append(time.perf_counter())
        logits = decoder._logits_mirror.fetch()[:, :V]
        moments.append(time.perf_counter())
        logits = bfloat16_values(logits) if logits.dtype == BFLOAT16_BITS else logits.copy()
        moments.append(time.perf_counter())
        for chooser, row in zip(choose, logits):
            chooser(row)
        moments.append(time.perf_counter())
        for name, begun, ended in zip(parts, moments, moments[1:]):
            parts[name] += ended - begun
        parts["step"] += moments[-1] - moments[0]
    return {name: 1e6 * seconds / rounds for name, seconds in parts.items()}


def measure(name, batches, position, variants):
    """Measure a model, and print. Returns a list of results."""
    config, results = parse_descriptor(name), []
    T = min(config.max_T, position + 8)
    model = ForwardModel(config, max(batches), T, Options(device="gpu", precision="bf16", tf32=False))
    model.load_pieces(repeated_weights(config))
    prompt = np.random.default_rng(0).integers(config.V, size=T - 4).tolist()
    floor = 2 * count_parameters(config) / 1e9
    for B in batches:
        logits = {}
        for way in (ONE_ROW, LIBRARY) if B == 1 else (LIBRARY,):
            model.graphs = Graphs(True)  # without those of the other way
            decoder = make_decoder(model, B, way, prompt)
            logits[way] = decoder.step(list(range(B)))
            whole, nodes, parts = time_parts(decoder, ONE_ROW_PARTS if way == ONE_ROW else LIBRARY_PARTS)
            host = host_times(decoder)
            error = np.abs(logits[way] - next(iter(logits.values()))).max() / np.abs(logits[way]).max()
            print(
                f"\n{name}, {B} texts, {way}: {whole:.3f} ms on the GPU ({1000 * floor / whole:,.0f} GB/s of parameters), {nodes} nodes; ",
                end="",
            )
            print(f"logits differ by {error:.1e} of the largest")
            print("  GPU, us each: " + ", ".join(f"{part} {launches} x {us:.2f}" for part, (us, launches) in parts.items()))
            print(
                "  host, us: " + ", ".join(f"{part} {us:.1f}" for part, us in host.items()) + f"; {B * 1e6 / host['step']:,.0f} tok/s",
                flush=True,
            )
            results.append(dict(model=name, B=B, way=way, gpu_ms=whole, nodes=nodes, parts=parts, host=host, error=float(error)))
        for variant in variants if B == 1 else ():
            time_of_variant = time_variant(model, B, prompt, variant)
            print(f"  variant {variant}: {time_of_variant:.3f} ms", flush=True)
            results.append(dict(model=name, B=B, variant=str(variant), gpu_ms=time_of_variant))
    return results


@functools.cache
def _maker(warps, loads):
    """make_one_row_kernel for other constants: with kernels of its own."""
    return functools.cache(one_row.make_one_row_kernel.__wrapped__)


def time_variant(model, B, prompt, variant):
    """Milliseconds of a token with other constants in one_row.py."""
    with contextlib.ExitStack() as stack:
        for constant, value in variant.items():
            stack.enter_context(mock.patch.object(one_row, constant, value))
        if variant.keys() != {"BLOCKS"}:  # kernels with other constants are neither found in the cache of kernels nor kept there
            stack.enter_context(mock.patch.object(KernelCache, "load_overload", lambda *_: None))
            stack.enter_context(mock.patch.object(KernelCache, "save_overload", lambda *_: None))
            stack.enter_context(mock.patch.object(one_row, "make_one_row_kernel", _maker(one_row.WARPS, one_row.LOADS_IN_FLIGHT)))
        return time_recorded(one_token(make_decoder(model, B, ONE_ROW, prompt)))[0]


def run(argv):
    """Measure what the command line asks for."""
    parser = Parser(prog="python -m dev.bench.sampling_parts", doc=__doc__)
    parser.add_argument("--models", default="d12,d48", help="names, with semicolons between if one has commas itself")
    parser.add_argument("--batches", default="1,8", help="texts side by side (default 1,8)")
    parser.add_argument("--position", type=int, default=320, help="tokens before the one that is timed (default 320)")
    parser.add_argument("--variants", action="store_true", help="also other constants of one_row.py")
    parser.add_argument("--json", metavar="FILE")
    settings = parser.parse_args(argv)
    print(device_name())
    if real_gpu() and not checked():
        raise UserError("one_row_forward is wrong: see the table above")
    results, batches = [], list(map(int, settings.batches.split(",")))
    for name in settings.models.split(";" if ";" in settings.models or "=" in settings.models else ","):
        results += measure(name, batches, settings.position, VARIANTS if settings.variants else ())
    if settings.json:
        with open(settings.json, "w") as file:
            json.dump({"device": device_name(), "results": results}, file, indent=1)


def main(argv):
    """Run the command line. Returns the exit code."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
