"""dev.bench.fp8_losses: a loss that chance explains is as good, a larger one is not; a variant changes what it names, and only then."""

import json

import numpy as np
import pytest

from dev.bench import fp8_losses
from gpt2_numba.gpu.float8 import E4M3, E5M2
from gpt2_numba.layers.fast import float8

STEPS = 50


class FakeSeries:
    """Draws losses instead of training. fp8 with e4m3 is a tenth of a nat worse."""

    def __init__(self, flags):
        self.worse = 0.1 if flags[-1] == "fp8" and float8.DOUT_FORMAT is E4M3 else 0.0

    def train(self, seed):
        noise = np.random.default_rng([seed, self.worse > 0]).normal(scale=0.01, size=STEPS)
        return {"losses": list(np.linspace(5, 3, STEPS) + noise + self.worse)}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fp8_losses, "Series", FakeSeries)

    def run_once(*arguments):
        code = fp8_losses.main(["--out", str(tmp_path), *arguments])
        return code, capsys.readouterr()

    return run_once


def test_chance_is_told_from_a_worse_training(run, tmp_path):
    code, printed = run("--variants", "fp8,e4m3", "--", "-x", str(STEPS))
    assert code == 1 and " as good" in printed.out and " WORSE" in printed.out
    figures = json.loads((tmp_path / "result.json").read_text())["figures"]
    assert not figures["fp8"]["worse"] and figures["e4m3"]["worse"]
    assert figures["e4m3"]["difference_at_the_end"] == pytest.approx(0.1, abs=0.02) and figures["e4m3"]["allowed"] < 0.05
    assert (tmp_path / "table.txt").read_text().strip() in printed.out
    assert run("--", "-x", str(STEPS))[0] == 0


def test_a_loss_that_is_not_finite_is_worse():
    exact = np.ones((3, 10)) + np.arange(3)[:, None] * 1e-3
    assert not fp8_losses.judge(exact, np.full((1, 10), np.nan))["finite"]


def test_a_variant_changes_what_it_names():
    before = float8.DOUT_FORMAT, float8.FAST_ACCUMULATION
    with fp8_losses.variant("e4m3"):
        assert float8.DOUT_FORMAT is E4M3
    with fp8_losses.variant("e5m2"):
        assert float8.DOUT_FORMAT is E5M2
    with fp8_losses.variant("float32"):
        assert float8.FAST_ACCUMULATION == {"out": False, "dinp": False, "dweight": False}
    with fp8_losses.variant("fp8"):
        assert (float8.DOUT_FORMAT, float8.FAST_ACCUMULATION) == before
    assert (float8.DOUT_FORMAT, float8.FAST_ACCUMULATION) == before


def test_mistakes_are_reported_in_one_line(run):
    for arguments, words in ((["--variants", "fp4"], "--variants takes fp8, e5m2"), (["--runs", "2"], "--runs must be at least 3")):
        code, printed = run(*arguments)
        assert code == 2 and words in printed.err and printed.err.count("\n") == 1
