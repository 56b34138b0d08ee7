"""A plan counts what a rank keeps layer by layer alike: the same numbers as parallel/shards.py, which lists all segments."""

import pytest

from gpt2_numba.config import parse_descriptor
from gpt2_numba.parallel.shards import Sharing
from gpt2_numba.planning.layers_alike import PlannedSharing
from gpt2_numba.planning.request import parse_request


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 7, 64, 4096])
@pytest.mark.parametrize("model", [*(f"L={L},NH=3,C=24,T=7,V=101" for L in (1, 2, 3, 4, 9)), "L=7,NH=1,C=8,T=1,V=1", "d12"])
def test_the_numbers_of_the_real_sharing(model, ranks, stage):
    config = parse_descriptor(model)
    real, planned = Sharing(config, 0, ranks, stage), PlannedSharing(config, ranks, stage)
    assert planned.stage == real.stage
    for kind in ("state", "grads", "counted"):
        assert getattr(planned, kind).local_count() == getattr(real, kind).local_count()
        assert getattr(planned, kind).global_count == getattr(real, kind).global_count
    assert planned.vectors() == sum(stop - start for start, stop in real.vector_runs())
    assert planned.update_ranges().shape == real.update_ranges().shape
    assert planned.norm_ranges().shape == real.norm_ranges().shape


def test_the_segments_of_thousands_of_layers_are_not_listed(monkeypatch):
    from gpt2_numba.parallel import shards
    from gpt2_numba.planning.choices import decide
    from gpt2_numba.planning.report import report

    def few(config):
        assert config.L <= 4
        return segments_of(config)

    segments_of = shards.segments_of
    monkeypatch.setattr(shards, "segments_of", few)
    lines, _ = report(decide(parse_request(["-e", "L=9999,NH=4,C=128", "--gpus", "8", "--gpu", "h100"])))
    assert any("8 × H100" in line for line in lines)
