"""The ruler (`python -m dev.bench`), as far as it can be tested without a GPU: what it counts, records, and computes from times."""

import inspect
import itertools
import json
import math
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from dev.bench import __main__ as bench
from dev.bench import ceilings as ceilings_module
from dev.bench import kernels as kernels_module
from dev.bench import start as start_module
from dev.bench import step as step_module
from dev.bench.ceilings import measure_ceilings, product_name, settled
from dev.bench.clock import time_call, time_for
from dev.bench.costs import COUNTS, Cost, launch_cost
from dev.bench.kernels import check_layers, checked_sizes, launch_name, layer_file, measure_kernels, part_name
from dev.bench.launches import Launch, LaunchLog, Part, watch_launches, work_key
from dev.bench.machine import GpuWatch, gpus, versions
from dev.bench.report import ceilings_table, kernels_table, summary, table, timeline_table
from dev.bench.roofline import LABEL_GAP, _apart, plot_roofline, plot_step
from dev.bench.step import gaps_between_steps, summarise
from dev.bench.trainer import Trainer
from gpt2_numba import fused_layer_order
from gpt2_numba.config import GPT2Config, parse_descriptor
from gpt2_numba.gpu.backend import FLOAT32, SIMULATING, copy_to_device, copy_to_host, gpu_available
from gpt2_numba.gpu.gemm import gemm
from gpt2_numba.kernel_sets import FUNCTIONS
from gpt2_numba.layer_checks import LAYERS, Sizes
from gpt2_numba.layers.fast import gelu

TINY = GPT2Config(L=2, NH=2, C=16, max_T=8, V=37)
CEILINGS = {"copy": 4e12, "matmul": 800e12}
NO_WATCH = SimpleNamespace(between=lambda start, stop: {})


class Shape:
    """An array without memory: only shape and type count."""

    def __init__(self, *shape, dtype="u2"):
        self.shape, self.size, self.ndim, self.dtype = shape, math.prod(shape), len(shape), np.dtype(dtype)


def f32(*shape):
    return Shape(*shape, dtype="f4")


def i32(*shape):
    return Shape(*shape, dtype="i4")


def cost(function, **arguments):
    return launch_cost(Part(function, arguments, None))


# ------------------------------------------------------------------------------------------------ bytes and FLOP, by hand

N, C, V, Vp, B, T = 12, 16, 37, 128, 3, 4  # bfloat16: two bytes


@pytest.mark.parametrize(
    "counted, nbytes, flop",
    [
        (cost("residual_forward", out=Shape(N, C), inp=Shape(N, C), branch=Shape(N, C)), 3 * N * C * 2, N * C),
        (cost("gelu_forward", out=Shape(N, C), inp=Shape(N, C)), 2 * N * C * 2, 9 * N * C),
        (cost("gelu_backward", dinp=Shape(N, C), dout=Shape(N, C), inp=Shape(N, C), dbias=None), 3 * N * C * 2, 16 * N * C),
        (
            cost("layernorm_forward", out=Shape(N, C), mean=f32(N), rstd=f32(N), inp=Shape(N, C), weight=Shape(C), bias=Shape(C)),
            2 * N * C * 2 + 2 * N * 4 + 2 * C * 2,
            7 * N * C,
        ),
        (  # dinp, dweight and dbias are read and written
            cost("layernorm_backward", dinp=Shape(N, C), dweight=Shape(C), dbias=Shape(C), dout=Shape(N, C), inp=Shape(N, C),
                 weight=Shape(C), mean=f32(N), rstd=f32(N), scratch=f32(999), dinp_sums=Shape(C)),
            (2 + 2) * N * C * 2 + (1 + 3 * 2) * C * 2 + 2 * N * 4,
            14 * N * C,
        ),
        (cost("matmul_forward", out=Shape(N, 8), inp=Shape(N, C), weight=Shape(8, C), bias=Shape(8)),
         (N * 8 + N * C + 8 * C + 8) * 2, 2 * N * C * 8),
        (
            cost("matmul_backward", dinp=Shape(N, C), dweight=Shape(8, C), dbias=None, dout=Shape(N, 8), inp=Shape(N, C), weight=Shape(8, C),
                 scratch=None, before_gelu=None),
            (2 * N * C + N * 8 + 3 * 8 * C) * 2,
            4 * N * C * 8,
        ),
        (cost("gemm", out=Shape(5, 6), a=Shape(5, 7), b=Shape(7, 6), rows=5, columns=6, inner=7, accumulate=False, bias=None),
         (30 + 35 + 42) * 2, 2 * 5 * 6 * 7),
        (cost("gemm", out=Shape(5, 6), a=Shape(5, 7), b=Shape(7, 6), rows=5, columns=6, inner=7, accumulate=True, bias=None),
         (2 * 30 + 35 + 42) * 2, 2 * 5 * 6 * 7),
        (cost("gemm", out=Shape(3, 5, 6), a=Shape(3, 5, 7), b=Shape(3, 7, 6), rows=5, columns=6, inner=7, accumulate=False, bias=None),
         3 * (30 + 35 + 42) * 2, 3 * 2 * 5 * 6 * 7),
        (  # T = 4: 10 of the 16 pairs of query and key, two products of HS multiply-adds each, NH = 2, HS = 8
            cost("attention_forward", out=Shape(N, C), lse=f32(B, 2, T), qkv=Shape(N, 3 * C), scratch=f32(999)),
            4 * N * C * 2 + B * 2 * T * 4,
            B * 2 * 10 * 2 * (2 * 8),
        ),
        (
            cost("attention_backward", dqkv=Shape(N, 3 * C), dout=Shape(N, C), out=Shape(N, C), lse=f32(B, 2, T), qkv=Shape(N, 3 * C),
                 scratch=f32(999)),
            8 * N * C * 2 + B * 2 * T * 4,
            B * 2 * 10 * 5 * (2 * 8),
        ),
        (  # 12 tokens, 12 rows of wte; 4 of the 9 rows of wpe
            cost("encoder_forward", out=Shape(N, C), tokens=i32(B, T), wte=Shape(Vp, C), wpe=Shape(9, C)),
            (N * C + N * C + T * C) * 2 + N * 4,
            N * C,
        ),
        (cost("encoder_forward", out=Shape(N, C), tokens=i32(B, T), wte=Shape(8, C), wpe=Shape(9, C)),  # a vocabulary of 8 tokens
         (N * C + 8 * C + T * C) * 2 + N * 4, N * C),
        (
            cost("encoder_backward", dwte=Shape(Vp, C), dwpe=Shape(9, C), dout=Shape(N, C), places=i32(N), pieces=i32(N + 1, 3), scratch=f32(99), T=T),
            (N * C + 2 * N * C + 2 * T * C) * 2 + (N + 3 * (N + 1)) * 4,
            2 * N * C,
        ),
        (cost("classifier_forward_backward", losses=f32(N), logits=Shape(N, Vp), targets=i32(N), dloss=0.1, V=V),
         2 * N * Vp * 2 + 2 * N * 4, 8 * N * Vp),
        (  # float32 m, v and master read and written, gradients read, parameters written
            cost("adamw_update", params=Shape(80), grads=Shape(80), m=f32(80), v=f32(80), master=f32(80)),
            80 * (2 + 2 + 3 * 2 * 4),
            16 * 80,
        ),
        (cost("adamw_update", params=f32(80), grads=f32(80), m=f32(80), v=f32(80), master=None), 80 * (4 + 3 * 2 * 4), 16 * 80),
        (cost("sum_of_squares", partials=f32(99), grads=Shape(80)), 80 * 2 + 99 * 4, 160),
        (cost("norm_and_scale", result=f32(2), partials=f32(99), loss=f32(1), max_norm=1.0), 102 * 4, 99),
        (cost("zero", array=Shape(80)), 160, 0),
    ],
)  # fmt: skip
def test_bytes_and_flop_match_those_counted_by_hand(counted, nbytes, flop):
    assert (counted.bytes, counted.flop) == (nbytes, flop)


def test_the_floor_is_the_longer_of_memory_and_matmul():
    product = Cost(bytes=4 * 10**9, flop=8 * 10**11, is_product=True)
    assert product.floor(CEILINGS) == 1.0 and product.bound(CEILINGS) == "memory"  # 1 ms of bytes, 1 ms of FLOP
    more = product + Cost(0, 8 * 10**11, True)
    assert more.floor(CEILINGS) == 2.0 and more.bound(CEILINGS) == "matmul"
    assert Cost(4 * 10**9, 10**15, is_product=False).floor(CEILINGS) == 1.0  # FLOP outside products never bound


def test_a_launch_without_a_formula_has_no_cost():
    assert cost("a_kernel_of_tomorrow", inp=Shape(8)) is None


@pytest.mark.parametrize("recompute", [0, 2])
def test_every_launch_of_the_model_and_all_its_arrays_are_counted(recompute):
    with watch_launches() as log:
        Trainer(TINY, 2, 8, 1, device="cpu", recompute=recompute).step()
    for launch in log.launches:
        count = COUNTS.get(launch.name)
        assert count, f"dev.bench.costs has no formula for {launch.name}: add one"
        known = f"{count.read} {count.written} {count.changed} {count.scratch}".split()
        arrays = {name for name, value in launch.arguments.items() if isinstance(value, np.ndarray)}
        assert arrays <= set(known), f"{launch.name}: {arrays - set(known)} must be counted in dev.bench.costs"
        assert len(known) == len(set(known)), f"{launch.name}: an argument is counted twice"
        assert set(count.elements) <= set(known)


def test_the_formulas_name_existing_arguments():
    for name, count in COUNTS.items():
        # A fast function, the textbook one of the same name, or both.
        fast = vars(fused_layer_order) | vars(fused_layer_order.global_norm) | {"gemm": gemm}
        functions = [fast.get(name), FUNCTIONS.get(name)]
        if any(functions):
            known = set(f"{count.read} {count.written} {count.changed} {count.scratch}".split())
            unknown = known.difference(*(inspect.signature(function).parameters for function in functions if function))
            assert not unknown, f"dev.bench.costs counts {unknown} of {name}, which has no such arguments"


# ------------------------------------------------------------------------------------------------------------ watching


def watched_step(config=TINY, B=2, T=8, micro_steps=2, device="cpu", mark=time.perf_counter):
    trainer = Trainer(config, B, T, micro_steps, device=device)
    with watch_launches(mark) as log:
        trainer.step(1, lambda phase: setattr(log, "phase", phase))
    return trainer, log


def test_the_launches_of_a_step_are_recorded_in_order_with_their_arguments():
    _, log = watched_step()
    names = [launch.name for launch in log.launches]
    assert names[:2] == ["zero", "encoder_forward"] and names[-1] == "adamw_update"
    assert names.count("attention_forward") == names.count("attention_backward") == TINY.L
    phases = [launch.phase for launch in log.launches]
    assert phases == sorted(phases, key=["forward", "backward", "update"].index)
    classifier = next(launch for launch in log.launches if launch_name(launch, TINY) == "matmul_forward classifier")
    assert classifier.arguments["weight"].shape == (TINY.Vp, TINY.C) and classifier.layer == "matmul"
    assert all(launch.start <= launch.stop for launch in log.launches)
    assert not any(name.endswith(("_size", "places_by_token")) for name in names)  # they only compute, on the host


def test_the_gap_between_steps_is_from_the_end_of_one_to_the_start_of_the_next(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(step_module, "mark", lambda: next(clock))
    monkeypatch.setattr(step_module, "milliseconds", lambda start, stop: stop - start)
    monkeypatch.setattr(step_module, "empty_mark", lambda: 0.0)
    monkeypatch.setattr(step_module, "real_gpu", lambda: False)  # the clock above has no events to query
    trainer = Trainer(TINY, 2, 8, 2, device="cpu")
    monkeypatch.setattr(trainer.model, "zero_grad", lambda: next(clock))  # the first work of a step takes a tick
    assert gaps_between_steps(trainer, 3) == {"gap_ms": [1, 1, 1], "ran_out_of_work": 0}
    assert next(clock) == 4 * 3


def test_the_start_of_a_training_is_measured_in_parts():
    flags = ["-e", "L=1,NH=1,C=16", "-b", "2", "-t", "8", "-d", "32", "--device", "cpu"]
    result = start_module.measure(flags)
    assert result["step"].startswith("step    1/1 | loss ")
    _, begins = result["inside"]["first step begins"]
    assert 0 < begins < result["seconds"]
    assert sum(result["parts"].values()) == pytest.approx(result["seconds"], rel=0.3)
    assert {"import Numba", "weights: drawn", "first backward pass queued", "other micro-steps queued"} <= set(result["parts"])
    text = start_module.format_result(result)
    assert f"first step begins after{begins:>26.2f}" in text and "0 kernels compiled" in text


def test_watching_restores_the_functions():
    before = dict(vars(fused_layer_order))
    with pytest.raises(RuntimeError, match="on purpose"), watch_launches():
        assert fused_layer_order.gelu_forward is not before["gelu_forward"]
        raise RuntimeError("on purpose")
    assert dict(vars(fused_layer_order)) == before


def test_a_launch_can_be_repeated_with_the_same_arrays():
    trainer, log = watched_step()
    launch = next(launch for launch in log.launches if launch.name == "gelu_forward")
    expected = launch.arguments["out"].copy()
    launch.arguments["out"][:] = np.nan
    launch.call()
    np.testing.assert_array_equal(launch.arguments["out"], expected)
    assert trainer.micro_steps == 2


def test_launches_of_different_layers_are_the_same_work():
    _, log = watched_step()
    gelu_launches = [launch for launch in log.launches if launch.name == "gelu_forward"]
    assert len(gelu_launches) >= 2 and len({work_key(launch) for launch in gelu_launches}) == 1
    matmul_keys = {work_key(launch) for launch in log.launches if launch.name == "matmul_forward"}
    assert len(matmul_keys) == 5  # qkv, attproj, fc, fcproj, classifier


@pytest.mark.skipif(not gpu_available(), reason="no GPU, and not in the simulator")
def test_the_parts_of_a_launch_are_its_kernels_and_products():
    config = GPT2Config(L=1, NH=1, C=8, max_T=2, V=9)
    with watch_launches() as log:
        Trainer(config, 1, 2, 1, device="gpu", tf32=False).micro_step()
    by_name = {}
    for launch in log.launches:
        by_name.setdefault(launch_name(launch, config), launch)
    assert [part_name(part, by_name["matmul_forward fc"]) for part in by_name["matmul_forward fc"].parts] == ["gemm forward"]
    names = [part_name(part, by_name["matmul_backward fc"]) for part in by_name["matmul_backward fc"].parts]
    assert {"gemm dweight", "gemm dinp"} <= set(names)
    assert by_name["gelu_backward"].parts[0].name.startswith("gelu_backward") and not by_name["zero"].parts
    part = by_name["encoder_forward"].parts[0]
    assert part.arguments["out"].shape == (2, 8)
    out = by_name["encoder_forward"].arguments["out"]
    expected = copy_to_host(out)
    copy_to_device(out, np.full(out.shape, np.nan, np.float32))
    part.call()
    np.testing.assert_array_equal(copy_to_host(out), expected)

    if SIMULATING:
        products = [part for launch in log.launches if launch.name.startswith("matmul") for part in launch.parts if part.name == "gemm"]
        measured = measure_ceilings(products[:2], FLOAT32, 2, NO_WATCH, square=8, copy_bytes=1 << 10, seconds=0.01)
        assert len(measured["products"]) == 2 and all(one["burst"] > 0 for one in measured["products"])
        assert {"copy", "matmul"} == set(measured["burst"]) == set(measured["sustained"])
        assert "MHz" not in ceilings_table(measured)


# ---------------------------------------------------------------------------------------------------- evaluation of times


def test_calls_are_timed():
    calls = []
    assert all(ms >= 0 for ms in time_call(lambda: calls.append(1)))
    repeated = time_for(0.01, lambda: calls.append(1))
    assert len(repeated) >= 2 and [end for end, _ in repeated] == sorted(end for end, _ in repeated)


def test_sustained_times_are_those_after_the_first_second():
    assert settled([(0.5, 1.0), (0.9, 1.0), (1.5, 3.0), (2.0, 5.0), (2.5, 4.0)]) == 4.0
    assert settled([(0.1, 9.0), (0.2, 9.0), (0.3, 2.0), (0.4, 2.0)]) == 2.0  # less than a second in total: the second half


def launch(name, phase, ms, arguments, parts=()):
    made = Launch(name, arguments, None, 0.0, ms, layer="gelu", phase=phase)
    made.parts = [Part(part, {}, None, 0.0, cost) for part, cost in parts]
    return made


@pytest.fixture
def timeline(monkeypatch):
    """One micro-step of two: zero 1 ms a step, a gelu of 2 ms (counted 1) forward, an unknown one of two kernels, an update of 4 ms."""
    monkeypatch.setattr(step_module, "milliseconds", lambda start, stop: stop - start)
    monkeypatch.setattr(step_module, "empty_mark", lambda: 0.0)
    log = LaunchLog(None)
    log.launches = [
        launch("zero", "forward", 1.0, {"array": Shape(2 * 10**9)}),
        launch("gelu_forward", "forward", 9.0, {"out": Shape(10**9), "inp": Shape(10**9)}, [("gelu_forward_kernel", 2.0)]),
        launch("unheard_of", "backward", 9.0, {}, [("one_kernel", 1.0), ("other_kernel", 2.0)]),
        launch("sum_of_squares", "update", 4.0, {"grads": Shape(6 * 10**9), "partials": f32(2)}),
    ]
    return summarise(log, SimpleNamespace(config=TINY, micro_steps=2), step_ms=20.0, ceilings={"copy": 4e12, "matmul": 1e15})


def test_the_step_is_the_sum_of_its_parts_and_the_rest(timeline):
    parts = timeline["parts"]
    assert {name: (part["calls"], part["ms"]) for name, part in parts.items()} == {
        "unheard_of": (2, 6.0), "gelu_forward": (2, 4.0), "sum_of_squares": (1, 4.0), "zero": (1, 1.0)
    }  # fmt: skip
    assert timeline["phases"] == {"forward": 5.0, "backward": 6.0, "update": 4.0}
    assert timeline["kernels"]["other_kernel"] == {"calls": 2, "ms": 4.0}
    assert timeline["kernels_ms"] == 15.0 and timeline["left_over_ms"] == 5.0 and timeline["left_over"] == 0.25
    # 4 and 12 GB at 4 TB/s are 1 and 3 ms; gelu twice; what is not counted is taken to be as fast as possible.
    assert parts["gelu_forward"]["floor_ms"] == 2.0 and parts["gelu_forward"]["share"] == 0.5
    assert timeline["floor_ms"] == pytest.approx(6 + 2 + 3 + 1, abs=1e-6)
    assert timeline["speed_of_light"] == timeline["floor_ms"] / 20
    text = timeline_table(timeline)
    assert "50% memory" in text and "not counted" in text and "left over: gaps" in text


def square_product(transpose_a):
    sizes = {"rows": 4, "columns": 4, "inner": 4, "transpose_a": transpose_a, "transpose_b": not transpose_a}
    return Part("gemm", {"out": Shape(4, 4), "a": Shape(4, 4), "b": Shape(4, 4), **sizes}, None)


def test_each_distinct_launch_is_timed_once_with_its_parts(monkeypatch):
    monkeypatch.setattr(kernels_module, "time_call", lambda call: [3.0, 1.0, 2.0])
    _, log = watched_step()
    for one in log.launches:
        one.parts = [square_product(False), square_product(True)] if one.name == "matmul_backward" else []
    rows = measure_kernels(log, TINY, CEILINGS, {"gelu": "ok 0.10"})
    names = [row["name"] for row in rows]
    assert len(names) == len({work_key(one) for one in log.launches})
    gelu = rows[names.index("gelu_backward")]
    assert gelu["calls"] == TINY.L and gelu["check"] == "ok 0.10" and gelu["ms"] == 2.0 and gelu["fastest_ms"] == 1.0
    assert gelu["share"] == pytest.approx(gelu["bytes"] / 4e12 * 1000 / 2.0)
    parts = rows[names.index("matmul_backward fcproj")]["parts"]
    assert [part["name"] for part in parts] == ["gemm forward", "gemm dweight"]
    assert json.loads(json.dumps(rows)) == rows
    text = kernels_table(rows)
    assert text.count("gelu_backward") == 1 and "  gemm dweight" in text and "ok 0.10" in text


def test_calls_of_one_name_are_distinguished_by_missing_arguments(monkeypatch):
    monkeypatch.setattr(kernels_module, "time_call", lambda call: [1.0])
    full = {"dinp": Shape(4, 8), "dout": Shape(4, 8), "inp": Shape(4, 8), "dbias": Shape(8)}
    log = LaunchLog(None)
    log.launches = [launch("gelu_backward", "backward", 1.0, full), launch("gelu_backward", "backward", 1.0, full | {"dbias": None})]
    assert [row["name"] for row in measure_kernels(log, TINY, CEILINGS, {})] == ["gelu_backward", "gelu_backward without dbias"]


def test_products_are_named_by_the_transposed_factor():
    def product(a, b):
        return product_name(Part("gemm", {"transpose_a": a, "transpose_b": b}, None))

    assert [product(False, True), product(False, False), product(True, False)] == ["forward", "dinp", "dweight"]


# ------------------------------------------------------------------------------------------------------------ checks


def test_checks_have_the_models_widths_and_few_rows():
    config = parse_descriptor("d48")
    for layer in LAYERS:
        sizes = checked_sizes(layer, config)
        assert (sizes.C, sizes.NH) == (1600, 25) and sizes.N <= 512
    assert checked_sizes("classifier", config).Vp == 50304
    assert {launch.layer for launch in watched_step()[1].launches} <= {layer_file(layer) for layer in LAYERS} | {""}


@pytest.mark.skipif(not gpu_available(), reason="no GPU, and not in the simulator")
def test_a_wrong_kernel_is_found(monkeypatch):
    sizes = Sizes(B=1, T=3, C=16, NH=1, V=9, Vp=16, OC=8)
    monkeypatch.setattr(kernels_module, "LAYERS", ("residual", "gelu"))
    verdicts, wrong = check_layers(TINY, "fp32", lambda layer, config: sizes)
    assert verdicts["residual"] == "ok 0.00" and verdicts["gelu"].startswith("ok 0.") and not wrong  # residual: bits must agree

    forward = gelu.gelu_forward
    monkeypatch.setattr(gelu, "gelu_forward", lambda out, inp: forward(out, out))
    verdicts, wrong = check_layers(TINY, "fp32", lambda layer, config: sizes)
    assert verdicts["gelu"] == "WRONG" and verdicts["residual"] == "ok 0.00"
    assert any(row.layer == "gelu forward" and row.tensor == "out" for row in wrong)


# ------------------------------------------------------------------------------------------------- tables, pictures, files


def test_table_columns_are_aligned():
    text = table(["name", "ms"], [["a", "1.0"], ["longer", "10.0"]])
    assert text.split("\n") == ["name    ms", "------  ----", "a       1.0", "longer  10.0"]
    three = table(["name", "ms", ""], [["a", "1.0", "x"], ["b", "10.0", ""]]).split("\n")
    assert three[2] == "a      1.0  x" and three[3] == "b     10.0"


def test_labels_keep_their_distance():
    moved = _apart([0.1, 0.1, 0.11, 0.5, 2.0, 2.0])
    assert moved == sorted(moved) and all(b - a > LABEL_GAP - 1e-9 for a, b in pairwise(moved))
    assert moved[0] == 0.1 and 0.02 <= min(moved) and max(moved) <= 0.88
    many = _apart([0.5] * 100)
    assert len(many) == 100 and min(many) > -1e-9 and max(many) <= 0.88


def test_the_result_and_its_plots_are_written(tmp_path, timeline):
    rows = [
        {"name": "gelu_forward", "shape": [4, 4], "calls": 1, "ms": 2.0, "bytes": 4e9, "flop": 9e9, "bound": "memory", "share": 0.5,
         "floor_ms": 1.0, "check": ""},
        {"name": "matmul_forward fc", "shape": [4, 4], "calls": 1, "ms": 2.0, "bytes": 4e9, "flop": 8e11, "bound": "matmul", "share": 0.5,
         "floor_ms": 1.0, "check": ""},
        {"name": "unheard_of", "shape": [], "calls": 1, "ms": 2.0, "check": ""},
        {"name": "zero", "shape": [9], "calls": 1, "ms": 2.0, "bytes": 4e9, "flop": 0, "bound": "memory", "share": 0.95, "floor_ms": 1.0, "check": ""},
    ]  # fmt: skip
    step = {"ms": 20.0, "tokens_per_second": 1e6, "mfu": 0.4, "host_ms_micro_step": 1.0, "host_ms_update": 0.5}
    result = {
        "date": "2026-01-01T00:00:00",
        "ceilings": {"burst": CEILINGS},
        "kernels": rows,
        "timeline": timeline,
        "step": {"as trained": step},
    }
    bench.write(result, tmp_path / "new" / "folder", "a title")
    assert json.loads((tmp_path / "new" / "folder" / "result.json").read_text())["kernels"] == rows
    for name in ("roofline.png", "step.png"):
        assert (tmp_path / "new" / "folder" / name).read_bytes().startswith(b"\x89PNG")
    text = summary(result)
    assert "1,000,000 tok/s" in text and "40.0% MFU" in text and "left over 5.0 ms = 25.0%" in text
    assert "below 90 % of the copy rate: gelu_forward 50%" in text and "WRONG" not in text
    assert "WRONG gelu forward: out" in summary({"wrong": ["gelu forward: out"]})
    plot_roofline([], CEILINGS, "nothing", tmp_path / "nothing.png")
    plot_step(timeline, "a step", tmp_path / "step.png")


def test_the_ceilings_table():
    measured = {
        "copy": {"burst": 4.2e12, "sustained": 4.1e12, "sm_clock_mhz": 1980.0, "mean_power_w": 420.0},
        "square": {"size": 8192, "burst": 8e14, "sustained": 7e14},
        "products": [{"name": "dinp", "MNK": [64, 32, 16], "calls": 12, "burst": 6e14}],
        "all_products": {"burst": 7e14, "sustained": 6.5e14, "tokens_per_second": 885000},
    }
    text = ceilings_table(measured)
    for word in ("4.20 TB/s", "4.10 TB/s", "1980 MHz", "420 W", "8192 x 8192 x 8192", "64 x 32 x 16 dinp", "885.0k tok/s"):
        assert word in text


def test_a_missing_gpu_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(bench, "real_gpu", lambda: False)
    assert bench.main([]) == 2
    error = capsys.readouterr().err
    assert "there is no GPU here" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "flags, word", [(["--part", "steps"], "ceilings,kernels,step"), (["--precision", "fp8"], "fp8"), (["--nothing"], "--nothing")]
)
def test_errors_are_reported_in_one_line(flags, word, capsys):
    assert bench.main(flags) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1


def test_the_machine_is_described():
    assert {"python", "numpy", "numba"} <= set(versions())
    assert gpus() is None or all(isinstance(line, str) for line in gpus())


def test_clock_and_power_are_medians_over_the_given_time():
    watch = GpuWatch("no such GPU")
    with watch:
        pass
    assert watch.between(0, math.inf) == {}
    watch._samples = [(s, 1900 - s, 3000, 600.0 + s, s > 2, 1000 * 650 * s) for s in range(6)]
    found = watch.between(1, 4)
    assert found == {"sm_clock_mhz": 1897.5, "memory_clock_mhz": 3000, "power_w": 602.5, "power_limited": 0.5, "mean_power_w": 650.0}


def test_a_burst_comes_after_a_rest(monkeypatch):
    monkeypatch.setattr(ceilings_module, "REST_SECONDS", 0.0)
    measured = ceilings_module._measure(lambda: None, work=10, watch=NO_WATCH, seconds=0.01)
    assert measured["burst"] > 0 and measured["sustained"] > 0
