"""The other forms of fast kernels in dev/kernels/*_variants.py, and the program that measures them: in the simulator, small."""

from functools import partial
from unittest.mock import patch

import numpy as np
import pytest

from dev.bench import variants
from dev.bench.variants import OverlappedShape
from dev.kernels import encoder_variants, layernorm_variants
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, SIMULATING
from gpt2_numba.layer_checks import Sizes, check_call, kernel_calls
from gpt2_numba.layers.fast import encoder, layernorm

pytestmark = pytest.mark.skipif(not SIMULATING, reason="on a GPU, python -m dev.bench.variants checks them at full size")

SEVERAL_WARPS = Sizes(B=1, T=7, C=520, NH=5, V=37, Vp=64, OC=8)  # an odd number of rows
MANY_ROWS = Sizes(B=2, T=16, C=8, NH=1, V=37, Vp=64, OC=8)  # the rings are used again and again
BACKWARD = {
    "overlapped": partial(layernorm_variants.overlapped, shape=OverlappedShape(1, 2, 1, False)),
    "overlapped, several warps": partial(layernorm_variants.overlapped, shape=OverlappedShape(3, 2, 1, True)),
    "teams": partial(layernorm_variants.teams, shape=(2, 1, 1, 1)),
    "teams, two rows": partial(layernorm_variants.teams, shape=(1, 2, 1, 2)),
    "teams, four rows": partial(layernorm_variants.teams, shape=(1, 4, 1, 1)),
}


def wrong_rows(layer, module, function, launcher, sizes, storage):
    with patch.object(module, function, launcher):
        calls = [call for call in kernel_calls(layer, sizes, storage) if call.function == function]
        return [str(row) for call in calls for row in (call.check or check_call)(call, storage) if not row.ok]


@pytest.mark.parametrize("name, sizes, storage", [
    ("overlapped", MANY_ROWS, FLOAT32),
    ("overlapped, several warps", SEVERAL_WARPS, BFLOAT16_BITS),
    ("teams", SEVERAL_WARPS, BFLOAT16_BITS),
    ("teams, two rows", MANY_ROWS, BFLOAT16_BITS),
    ("teams, four rows", MANY_ROWS, FLOAT32),
], ids=str)  # fmt: skip
def test_layernorm_backward(name, sizes, storage):
    assert wrong_rows("layernorm", layernorm, "layernorm_backward", BACKWARD[name], sizes, storage) == []


def test_attention_with_sums():
    """Tokens that do not fill a tile, and several tiles; rows beyond the last token must not count."""
    case = variants.Case("attention_backward bias", Sizes(B=1, T=70, C=64, NH=1, V=8, Vp=8, OC=8))
    assert case.check(variants.TODAY, variants.attention_then_bias)["problems"] == []
    assert case.check("with sums", variants.attention_with_sums)["problems"] == []


@pytest.mark.parametrize("function", ["layernorm_forward", "residual_layernorm_forward"])
@pytest.mark.parametrize("warps", [1, 2, 3])
def test_layernorm_forward(function, warps):
    launcher = partial(getattr(layernorm_variants, function), warps=warps, rows=2)
    assert wrong_rows("layernorm", layernorm, function, launcher, SEVERAL_WARPS, FLOAT32) == []


def test_encoder():
    odd_batch = Sizes(B=3, T=5, C=264, NH=3, V=37, Vp=64, OC=8)
    forward, backward = partial(encoder_variants.rows_at_once, sequences=2), partial(encoder_variants.whole_rows, rows=2)
    assert wrong_rows("encoder", encoder, "encoder_forward", forward, odd_batch, FLOAT32) == []
    assert wrong_rows("encoder", encoder, "encoder_backward", backward, odd_batch, FLOAT32) == []


@pytest.mark.parametrize("function", [function for function in variants.VARIANTS if "small" in variants.VARIANTS[function]])
def test_every_form_is_right_and_where_it_says_so_has_the_same_bits(function):
    rows = variants.check_small([function])
    assert len(rows) > 1 and [row["problems"] for row in rows if row["problems"]] == []
    same = {row["variant"] for row in rows if row["same"]}
    assert {"today"} | {row["variant"] for row in rows if row["variant"].startswith(("pipelined", "early", "rows", "whole", "block range", "overlapped 1"))
                        and "8 loads" not in row["variant"]} <= same  # fmt: skip


def test_a_wrong_form_is_reported(capsys):
    def off_by_a_row(out, tokens, wte, wpe):
        encoder.encoder_forward(out, tokens, wte, wpe[1:])

    with patch.dict(variants.VARIANTS["encoder_forward"], small={"wrong": off_by_a_row}):
        assert variants.main(["encoder_forward"]) == 1
    printed = capsys.readouterr().out
    assert "wrong                      WRONG" in printed and "encoder forward: out" in printed


def test_a_function_that_does_not_exist_is_refused(capsys):
    assert variants.main(["layernorm"]) == 2
    assert capsys.readouterr().err.startswith("error: functions must be some of layernorm_backward, ")


def test_the_bytes_are_those_that_must_be_moved():
    case = variants.Case("bias_backward", variants.SMALL)
    N, OC = case.call.tensors["dout"].shape
    assert case.bytes() == 2 * N * OC
    assert variants.Case("accumulate_partials", variants.SMALL).bytes() == 4 * 3 * 3 * variants.SMALL.C + 2 * 3 * 2 * variants.SMALL.C
    assert np.isclose(variants.Case("layernorm_backward", variants.SMALL).bytes(), 4 * 2 * variants.SMALL.N * variants.SMALL.C, rtol=0.5)


def test_processes_check_and_measure_and_one_that_fails_leaves_the_others_alone(monkeypatch, capfd):
    monkeypatch.setattr(variants, "COPY_BYTES", 1 << 20)
    rows = variants.measure([("no such function", "small"), ("accumulate_partials", "small")])
    assert [(row["function"], row["variant"]) for row in rows] == [("accumulate_partials", "today"), ("accumulate_partials", "early")]
    assert all(row["cool_ms"] > 0 and row["hot_ms"] > 0 and row["copy_rate"] > 0 and not row["problems"] for row in rows)
    printed = capfd.readouterr()
    assert "accumulate_partials small checked" in printed.out
    assert "no such function small FAILED" in printed.out and "KeyError" in printed.err
