"""How far apart right programs may come (dev/bench/chance.py and what is judged by it), and gradients added up in bfloat16."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dev.bench import accumulation, drift, long_losses, roundings
from dev.bench.chance import allowance, student_quantile
from dev.bench.llmc_losses import LLMC
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, copy_to_host, gpu_available, to_device
from gpt2_numba.layer_checks.tolerances import half_ulp
from gpt2_numba.layers.fast import matmul
from gpt2_numba.train import main as train_main

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
SIZES = "-e L=1,NH=2,C=16,T=16,V=257 -b 4 -t 16 -d 128 -l 0.01 -u 4 -v 0 -s 0 --device cpu"
with_kernels = pytest.mark.skipif(not gpu_available(), reason="no GPU, and NUMBA_ENABLE_CUDASIM=0 turns off the simulator")


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """Bytes, some much more frequent than others."""
    path = tmp_path_factory.mktemp("tokens") / "bytes_train_000000.bin"
    write_shard(path, np.minimum(np.random.default_rng(1).geometric(0.03, 20_000), 255))
    return str(path)


# -------------------------------------------------------------------------------------------------------------- chance


@pytest.mark.parametrize(
    "outside, freedom, expected", [(0.05, 1, 12.706), (0.01, 3, 5.841), (0.01, 4, 4.604), (0.001, 4, 8.610), (0.01, 30, 2.750)]
)
def test_student_s_quantiles_are_those_of_the_tables(outside, freedom, expected):
    assert student_quantile(outside, freedom) == pytest.approx(expected, rel=1e-3)


def test_chance_exceeds_an_allowance_as_often_as_it_should():
    """Ten thousand times: four runs, and a fifth from the same distribution; then one that is off by three times the allowance's mean."""
    figures = np.random.default_rng(0).normal(7, 3, (5, 10_000))
    allowed, distance = allowance(figures[:4], 0.05), abs(figures[4] - figures[:4].mean(axis=0))
    assert abs((distance > allowed).mean() - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 10_000)
    off = abs(figures[4] + 3 * allowed.mean() - figures[:4].mean(axis=0))
    assert (off > allowed).mean() > 0.9


# --------------------------------------------------------------------------------------- the same training, other roundings


def losses_of(file, what="losses"):
    return {seed: run[what] for seed, run in json.loads(file.read_text())["runs"].items()}


def test_seed_0_is_the_trainer_s_run_and_others_start_a_rounding_away(shard, tmp_path, capsys):
    flags = [*f"-i {shard} -j {shard} {SIZES} -x 12".split()]
    assert roundings.main(["--seeds", "0,1,2,3", "--json", str(tmp_path / "first.json"), "--", *flags]) == 0
    assert roundings.main(["--seeds", "3,2,1,0", "--json", str(tmp_path / "second.json"), "--", *flags]) == 0
    capsys.readouterr()
    assert train_main(flags) == 0
    printed = [float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    first, second = losses_of(tmp_path / "first.json"), losses_of(tmp_path / "second.json")
    np.testing.assert_allclose(first["0"], printed, atol=0.6e-6)
    assert first == second, "a run does not depend on the runs before it"
    norms = losses_of(tmp_path / "first.json", "norms")
    assert any(norms["0"] != norms[seed] for seed in "123")
    np.testing.assert_allclose(first["0"], first["1"], rtol=1e-4)


def test_fewer_rows_at_once_are_the_same_data(shard, tmp_path):
    flags = [*f"-i {shard} -j {shard} {SIZES} -x 3".split()]
    for name, extra in (("all", []), ("two", ["--rows-at-once", "2"])):
        assert roundings.main(["--seeds", "0", *extra, "--json", str(tmp_path / name), "--", *flags]) == 0
    np.testing.assert_allclose(losses_of(tmp_path / "all")["0"], losses_of(tmp_path / "two")["0"], rtol=1e-5)


@pytest.mark.parametrize("extra", [["--rows-at-once", "3"], ["--encoder", "stochastic"]])
def test_what_cannot_be_done_is_said_in_one_line(shard, tmp_path, capsys, extra):
    flags = [*f"-i {shard} -j {shard} {SIZES} -x 3".split()]
    assert roundings.main(["--seeds", "0", *extra, "--json", str(tmp_path / "runs.json"), "--", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"error: {extra[0]}")


@with_kernels
def test_seeds_and_the_encoder_s_rounding_change_a_run_in_bf16(shard, tmp_path):
    """From the second step on: stochastic rounding begins with the first update."""
    flags = [*f"-i {shard} -j {shard} -e L=1,NH=1,C=8,T=8,V=257 -b 1 -t 8 -x 2 -l 0.01 -v 0 --device gpu --precision bf16".split()]
    for encoder, seeds in (("nearest", "0,1"), ("stochastic", "0")):
        command = ["--seeds", seeds, "--encoder", encoder, "--json", str(tmp_path / encoder), "--", *flags]
        assert roundings.main(command) == 0
    (usual, other), (stochastic,) = (losses_of(tmp_path / encoder).values() for encoder in ("nearest", "stochastic"))
    assert usual[0] == other[0] == stochastic[0] and usual[1] != other[1]
    np.testing.assert_allclose([other[1], stochastic[1]], usual[1], rtol=2.0**-6)
    norms = [losses_of(tmp_path / encoder, "norms")["0"][0] for encoder in ("nearest", "stochastic")]
    assert norms[0] != norms[1]
    np.testing.assert_allclose(norms[0], norms[1], rtol=2.0**-8)


# --------------------------------------------------------------------------------------------------- beside PyTorch


def test_many_steps_beside_pytorch_on_a_cpu(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[oracle]' to compare with it")
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    sizes = ["--model", "L=1,NH=2,C=16,T=16,V=257", "--batch", "-b 4 -t 16 -d 64", "--steps", "15", "--runs", "3"]
    assert long_losses.main(["--out", str(tmp_path), "--text", str(README), "--device", "cpu", *sizes]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    judged = result["figures"]["fp32"]
    assert judged["runs"] == 3 and judged["agree"] and abs(judged["mean_difference"]) < judged["allowance"] < 1e-4
    assert (tmp_path / "losses.png").stat().st_size > 10_000
    assert "no bias is seen" in (tmp_path / "table.txt").read_text()


def made_up_runs(runs, steps, spread, generator):
    """Losses that fall, with errors that wander, as those of trainings that come apart do."""
    walks = np.cumsum(generator.normal(0, spread, (runs, steps)), axis=1)
    return 11 * np.exp(-np.arange(steps) / 100) + walks


def test_a_bias_is_told_from_chance():
    generator = np.random.default_rng(2)
    ours, theirs = made_up_runs(6, 300, 1e-3, generator), made_up_runs(1, 300, 1e-3, generator)[0]
    judged = long_losses.judge(ours, theirs)
    assert judged["agree"] and "no bias is seen" in long_losses.summary("bf16", judged)
    biased = long_losses.judge(ours, theirs - 2 * judged["allowance"])
    assert not biased["agree"] and "THERE IS A BIAS" in long_losses.summary("bf16", biased)
    assert long_losses.judge(ours[:2], theirs)["agree"] is None
    price = long_losses.price_of_bf16({"bf16": ours + 0.5, "fp32": ours}, {"bf16": theirs + 0.25, "fp32": theirs})
    assert (price["ours"], price["torch"]) == (pytest.approx(0.5), pytest.approx(0.25))


# ---------------------------------------------------------------------------------------------------- beside llm.c


def growing(generator, start=5e-5, steps=10):
    return generator.normal(size=steps) * start * 2.0 ** np.arange(steps) * (np.arange(steps) > 0)


def test_a_drift_is_judged_by_the_seeds():
    """Runs scattered about llm.c's losses by what doubles in every step; and one that is off by twenty times as much."""
    generator = np.random.default_rng(1)
    first, second = (list(losses[:10]) for losses in LLMC["d48"])
    losses = {f"seed {seed}": (first + growing(generator)).tolist() for seed in range(5)}
    losses |= {"cudnn": (first + growing(generator)).tolist(), "wrong": (first + 20 * 5e-5 * 2.0 ** np.arange(10)).tolist()}
    judged, text = drift.report(losses, {"llm.c": first, "llm.c, other way": second})
    assert 1.6 < judged["growth"] < 2.5
    assert {name: row["within"] for name, row in judged["runs"].items()} == {
        "llm.c": True, "llm.c, other way": True, "cudnn": True, "wrong": False,
    }  # fmt: skip
    assert len(judged["runs"]["llm.c"]["distances"]) == 9
    assert "MORE THAN CHANCE" in text and "seed 4" in text


def test_runs_of_all_kinds_from_one_model_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    flags = [
        "--flags",
        "-t 16 -l 0.03 -u 4 -v 0 -s 0 --device cpu",
        "--usual",
        "-b 4 -d 64 -r 0",
        "--parts",
        "rows,r1",
        "--tokenizer",
        "bytes",
    ]
    monkeypatch.setitem(drift.PARTS, "rows", "--rows-at-once 2 |")
    sizes = ["--model", "L=1,NH=2,C=16,T=16,V=257", "--steps", "5", "--seeds", "2"]
    text = tmp_path / "text.txt"
    text.write_text(README.read_text(encoding="utf-8") * 3, encoding="utf-8")
    assert drift.main([str(text), "--out", str(tmp_path / "out"), *sizes, *flags]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result["losses"]) == ["seed 0", "seed 1", "rows", "r1"]
    assert result["losses"]["r1"] == result["losses"]["seed 0"], "recomputing changes no bit without cuBLASLt's GELU"
    np.testing.assert_allclose(result["losses"]["rows"], result["losses"]["seed 0"], rtol=1e-3)
    assert [file.suffix for file in (tmp_path / "out").iterdir() if file.suffix == ".bin"] == []
    assert drift.main([str(text), "--out", str(tmp_path), "--parts", "unknown"]) == 2
    assert "--parts takes" in capsys.readouterr().err


def test_a_nudge_grows_at_a_large_rate_only():
    """One weight larger by 1e-6. In 24 steps the distance doubles at most at a rate of 1e-4, and grows a thousandfold at 3e-2."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # products so small that threads only wait
    command = [sys.executable, "-m", "dev.bench.chaos", "--rates", "1e-4,3e-2"]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    rows = {float(row[0]): [float(cell) for cell in row[3:]] for row in map(str.split, printed.splitlines()[2:])}
    (slow_first, *_, slow_last, slow_growth, slow_losses), (first, *_, last, fast_growth, fast_losses) = rows[min(rows)], rows[max(rows)]
    assert slow_last < 4 * slow_first and slow_growth < 1.1 and slow_losses < 1e-5
    assert last > 100 * first and fast_growth > 1.25 and fast_losses > 3e-4


# ------------------------------------------------------------------------------------- gradients added up in bfloat16


def test_one_rounding_s_relative_error():
    """r, for numbers whose mantissas are spread like their logarithm."""
    values = (2.0 ** np.random.default_rng(0).uniform(-20, 0, 1 << 18)).astype(np.float32)
    for scale in (1.0, 2.0**-60):  # r is a ratio of sums over each binade
        numbers = values * np.float32(scale)
        binade = numbers[numbers > scale / 2]
        error = accumulation.to_bfloat16(binade) - binade.astype(np.float64)
        measured = math.sqrt(np.square(error).sum() / np.square(binade, dtype=np.float64).sum())
        assert measured == pytest.approx(accumulation.RELATIVE_ERROR, rel=0.02)


@pytest.mark.parametrize("ratio", [0.3, 1.0, math.inf])
@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_the_formula_for_made_up_gradients(ratio, count):
    """A quarter of the error is allowed: mantissas of a sum are not spread quite like a logarithm. The bias is that of 20,000 tosses."""
    error, bias = accumulation.relative_error(accumulation.made_up_gradients(count, ratio))
    common, different = (0, 1) if math.isinf(ratio) else (1, ratio**2)
    assert error == pytest.approx(accumulation.expected_error(count, common, different), rel=0.25)
    assert abs(bias) < 0.1 * error


def test_the_errors_of_equal_gradients_add_up():
    """Each sum in a binade has the same error: 32 equal shares are off by three times the formula, 512 lose a quarter of their sum."""
    error, _ = accumulation.relative_error(accumulation.made_up_gradients(32, 0.0))
    assert 2 < error / accumulation.expected_error(32, 1, 0) < 4
    _, bias = accumulation.relative_error(accumulation.made_up_gradients(512, 0.0))
    assert bias < -0.2


def cut_off(values):
    """float32 values without their lower 16 bits: what a kernel would store that does not round."""
    return (np.asarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def test_32_micro_steps_of_a_model_s_gradients(monkeypatch):
    """The mean square of the errors is a twelfth of the square of a unit for each rounding, and half a percent of the gradients."""
    shares = accumulation.gradients_of_micro_steps(32)
    sums, exact = accumulation.partial_sums(shares), shares.sum(axis=0, dtype=np.float64)
    units = 2 * half_ulp(np.concatenate([sums[1:], shares]), BFLOAT16_BITS)  # of the rounded sums and products
    assert np.square(sums[-1] - exact).sum() == pytest.approx(np.square(units, dtype=np.float64).sum() / 12, rel=0.25)
    error, bias = accumulation.relative_error(shares)
    assert error == pytest.approx(accumulation.expected_error(32, *accumulation.common_and_different(shares)), rel=0.25)
    assert 3e-3 < error < 8e-3 and abs(bias) < 1e-3
    monkeypatch.setattr(accumulation, "to_bfloat16", cut_off)  # every sum, and so the last one, becomes smaller
    error, bias = accumulation.relative_error(shares)
    assert error > 0.02 and bias < -0.02


@with_kernels
def test_32_micro_steps_of_the_kernels():
    """A matrix and a bias. cuBLASLt rounds product and sum, its twin in the simulator the sum only: the formula is for both."""
    generator = np.random.default_rng(5)
    N, C, OC, count = 8, 32, 40, 32
    dweight, dbias = (to_device(np.zeros(shape, np.float32), BFLOAT16_BITS) for shape in ((OC, C), (OC,)))
    dinp, weight = (to_device(generator.normal(size=shape), BFLOAT16_BITS) for shape in ((N, C), (OC, C)))
    scratch = to_device(np.zeros(matmul.matmul_scratch_size(OC), np.float32), FLOAT32)
    shares = {"dweight": [], "dbias": []}
    common = generator.normal(size=(N, OC))
    inp = to_device(generator.normal(size=(N, C)), BFLOAT16_BITS)
    for _ in range(count):
        dout = to_device(common + generator.normal(size=(N, OC)), BFLOAT16_BITS)
        matmul.matmul_backward(dinp, dweight, dbias, dout, inp, weight, scratch)
        used_dout, used_inp = (copy_to_host(array).astype(np.float64) for array in (dout, inp))
        shares["dweight"].append(used_dout.T @ used_inp)
        shares["dbias"].append(used_dout.sum(axis=0))
    for name, result in (("dweight", dweight), ("dbias", dbias)):
        each = np.array(shares[name])
        exact, error = each.sum(axis=0), copy_to_host(result) - each.sum(axis=0)
        sums = np.cumsum(each, axis=0)
        worst = sum(half_ulp(1.01 * abs(part), BFLOAT16_BITS) for part in (*sums, *each))  # every rounding, all in one direction
        assert (abs(error) <= worst).all()
        relative = math.sqrt(np.square(error).sum() / np.square(exact).sum())
        expected = accumulation.expected_error(count, *accumulation.common_and_different(each))
        # A mean square is taken over a finite number of errors. It scatters as if they were independent, and as much again from the mantissas.
        assert expected * (1 - 6 / math.sqrt(error.size)) / 1.3 < relative < 1.3 * expected * (1 + 6 / math.sqrt(error.size))
