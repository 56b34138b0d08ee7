"""The choice of cuBLASLt's algorithms: the race, and the files in which its results are kept. Only the last part needs a GPU."""

import json

import numpy as np
import pytest

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, copy_to_host, real_gpu, to_device
from gpt2_numba.gpu.matmul_search import MAX_ROUNDS, MIN_ROUNDS, RUN_FILE, SEARCH_SECONDS, WARM_UP_SECONDS, Choices, fastest

on_a_gpu_only = pytest.mark.skipif(not real_gpu(), reason="cuBLASLt needs a GPU")


class Race:
    """Candidates with known times, on a simulated clock; `noise` is a relative deviation that changes from round to round."""

    def __init__(self, *milliseconds, noise=0.0):
        self.milliseconds, self.noise = milliseconds, noise
        self.seconds, self.orders = 0.0, []

    def measure(self, order):
        self.orders.append(list(order))
        turn = len(self.orders) % 3 - 1  # -1, 0, 1
        times = [self.milliseconds[i] * (1 + self.noise * turn * (-1) ** i) for i in order]
        self.seconds += sum(times) / 1e3
        return times

    def winner(self):
        return fastest(self.measure, len(self.milliseconds), now=lambda: self.seconds)


@pytest.mark.parametrize("times, winner", [
    ((1.0, 0.9, 0.8), 2), ((1.0, 0.98), 1), ((1.0, 0.995), 0), ((1.0, 1.0, 1.0), 0), ((0.5, 0.9, 0.6), 0), ((3.0, 1.0, 0.9999), 2),
])  # fmt: skip
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_fastest_wins_if_it_beats_the_first_clearly(times, winner, noise):
    assert Race(*times, noise=noise).winner() == winner


def test_hopeless_candidates_drop_out_but_the_first_never_does():
    race = Race(5.0, 1.0, 1.1, 2.0)
    assert race.winner() == 1
    assert sorted(race.orders[0]) == [0, 1, 2, 3]
    assert sorted(race.orders[-1]) == [0, 1, 2]


def test_the_candidates_take_turns_in_running_first():
    race = Race(1.0, 1.0, 1.0)
    race.winner()
    assert {order[0] for order in race.orders} == {0, 1, 2}


def test_one_lucky_time_does_not_win():
    race = Race(1.0, 1.0)
    measure = race.measure

    def with_luck(order):
        times = measure(order)
        return [time / 2 if candidate == 1 and len(race.orders) % 7 == 0 else time for candidate, time in zip(order, times)]

    race.measure = with_luck
    assert race.winner() == 0


@pytest.mark.parametrize("milliseconds", [0.001, 0.1, 1.0, 10.0])
def test_a_race_keeps_to_its_time_limit(milliseconds):
    race = Race(*[milliseconds] * 8)
    race.winner()
    one_round = 8 * milliseconds / 1e3
    assert race.seconds <= WARM_UP_SECONDS + SEARCH_SECONDS + (MIN_ROUNDS + 2) * one_round
    assert len(race.orders) <= 2 * MAX_ROUNDS


# ------------------------------------------------------------------------------------------------------------ kept choices


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(*arguments):
    choices = Choices()
    return choices, choices.open(*arguments)


GPU = ("NVIDIA H200", 130101)


def test_a_choice_is_found_by_the_same_run_and_by_later_ones(cache, tmp_path):
    run, another = tmp_path / "run", tmp_path / "another"
    choices, lines = opened(*GPU, run)
    assert lines == [] and choices.get("a product") is None
    choices.put("a product", b"\x01\xff")
    assert json.loads((run / RUN_FILE).read_text()) == {"gpu": GPU[0], "cublaslt": GPU[1], "algorithms": {"a product": "01ff"}}
    for directory in (run, another, None):
        later, lines = opened(*GPU, directory)
        assert lines == [] and later.get("a product") == b"\x01\xff"
    assert "a product" in (another / RUN_FILE).read_text()  # used by that run, so kept with it


def test_the_runs_own_choice_precedes_the_cache(cache, tmp_path):
    opened(*GPU, tmp_path)[0].put("a product", b"\x01")
    opened(*GPU, None)[0].put("a product", b"\x02")
    assert opened(*GPU, tmp_path)[0].get("a product") == b"\x01"
    assert opened(*GPU, None)[0].get("a product") == b"\x02"


def test_concurrent_runs_keep_each_others_choices(cache):
    one, other = opened(*GPU)[0], opened(*GPU)[0]
    one.put("a product", b"\x01")
    other.put("another product", b"\x02")
    later = opened(*GPU)[0]
    assert (later.get("a product"), later.get("another product")) == (b"\x01", b"\x02")


@pytest.mark.parametrize("other", [("NVIDIA H100", 130101), ("NVIDIA H200", 130200)])
def test_another_gpu_or_library_searches_again_and_says_so(cache, tmp_path, other):
    opened(*GPU, tmp_path)[0].put("a product", b"\x01")
    choices, (line,) = opened(*other, tmp_path)
    assert choices.get("a product") is None
    expected = f"{tmp_path / RUN_FILE} is from {GPU[0]} with cuBLASLt {GPU[1]}, this is {other[0]} with cuBLASLt {other[1]}: "
    assert line.startswith(expected) and "\n" not in line
    choices.put("a product", b"\x02")
    assert opened(*other, tmp_path)[0].get("a product") == b"\x02"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"gpu": "NVIDIA H200"}', '{"gpu": "NVIDIA H200", "cublaslt": 130101, "algorithms": {"a": "xy"}}']
)
def test_a_damaged_file_is_reported_and_replaced(cache, tmp_path, content):
    (tmp_path / RUN_FILE).write_text(content)
    choices, (line,) = opened(*GPU, tmp_path)
    assert line.startswith(f"{tmp_path / RUN_FILE} cannot be read") and "\n" not in line
    choices.put("a product", b"\x01")
    assert opened(*GPU, tmp_path)[1] == []


def test_a_choice_that_cannot_be_written_holds_for_this_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    choices, _ = opened(*GPU)
    choices.put("a product", b"\x01")
    assert choices.get("a product") == b"\x01"


@pytest.mark.parametrize("search", [False, True])
def test_another_process_adopts_the_choices_and_writes_nothing(cache, tmp_path, search):
    first, _ = opened(*GPU, tmp_path / "run")
    first.put("a product", b"\x01\xff")
    known = json.loads(json.dumps(first.known()))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) == 2  # the run's and the cache's

    other = Choices()
    assert other.adopt(known, *GPU, search) == [] and other.searching == search
    assert other.get("a product") == b"\x01\xff" and other.get("another") is None
    other.put("another", b"\x02")  # found by its own search
    assert other.get("another") == b"\x02"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_adopting_choices_replaces_earlier_ones(cache):
    one, other = opened(*GPU)[0], Choices()
    one.put("a product", b"\x01")
    other.adopt({"gpu": GPU[0], "cublaslt": GPU[1], "algorithms": {}}, *GPU)
    assert other.get("a product") is None
    one.adopt(other.known(), *GPU)
    assert one.get("a product") is None and not one.searching
    one.adopt(Choices().known(), *GPU)  # of a process that does not search
    assert one.get("a product") is None and one.known()["gpu"] == GPU[0]


def test_choices_from_another_gpu_are_ignored_with_a_message(cache):
    one, other = opened("NVIDIA H100", 130101)[0], Choices()
    one.put("a product", b"\x01")
    (line,) = other.adopt(one.known(), *GPU)
    assert other.get("a product") is None
    assert line.startswith("another process's matmul choices are from NVIDIA H100 with cuBLASLt 130101, this is NVIDIA H200 ")


def test_nothing_is_searched_or_kept_by_default(cache):
    choices = Choices()
    assert not choices.searching and choices.get("a product") is None
    choices.open(*GPU)
    assert choices.searching
    choices.close()
    assert not choices.searching and not cache.exists()


# -------------------------------------------------------------------------------------------------------------- on a real GPU


@pytest.fixture
def searching(cache, tmp_path):
    from gpt2_numba.gpu import cublaslt

    assert cublaslt.search_algorithms(tmp_path / "run") == []
    yield tmp_path / "run" / RUN_FILE
    cublaslt.take_first_algorithms()


@on_a_gpu_only
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16_BITS])
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_search_computes_the_product_and_accumulates_once(dtype, accumulate, searching, monkeypatch):
    from gpt2_numba.gpu import cublaslt
    from gpt2_numba.gpu.gemm import gemm

    rng = np.random.default_rng(1)
    rows, columns, inner = 512, 256, 1024
    a, b, out = (
        to_device(rng.integers(-1, 2, shape).astype(np.float32), dtype) for shape in ((rows, inner), (inner, columns), (rows, columns))
    )
    product, before = copy_to_host(a) @ copy_to_host(b), copy_to_host(out) if accumulate else 0
    assert np.abs(product).max() <= 126  # small integers, so that nothing is rounded, not even in bfloat16
    gemm(out, a, b, rows=rows, columns=columns, inner=inner, accumulate=accumulate)
    np.testing.assert_array_equal(copy_to_host(out), before + product)
    (kind,) = cublaslt._plans
    assert list(json.loads(searching.read_text())["algorithms"]) == [str(kind)]
    # The next process uses the kept choice.
    cublaslt.search_algorithms(searching.parent)
    monkeypatch.setattr(cublaslt, "fastest", lambda *_: pytest.fail("searched again"))
    gemm(out, a, b, rows=rows, columns=columns, inner=inner, accumulate=accumulate)
    np.testing.assert_array_equal(copy_to_host(out), before + (2 if accumulate else 1) * product)


@on_a_gpu_only
def test_another_process_multiplies_with_the_adopted_algorithms(searching, monkeypatch):
    from gpt2_numba.gpu import cublaslt
    from gpt2_numba.gpu.gemm import gemm

    a, out = (to_device(np.ones((256, 256), np.float32)) for _ in range(2))
    gemm(out, a, a, rows=256, columns=256, inner=256)
    kept, chosen = searching.read_text(), cublaslt.chosen_algorithms()
    (plan,) = cublaslt._plans.values()
    monkeypatch.setattr(cublaslt, "fastest", lambda *_: pytest.fail("searched"))
    monkeypatch.setattr(cublaslt.Plan, "candidates", lambda *_: pytest.fail("took the library's first"))
    assert cublaslt.adopt_algorithms(chosen) == []
    gemm(out, a, a, rows=256, columns=256, inner=256)
    assert next(iter(cublaslt._plans.values())).algorithm.tobytes() == plan.algorithm.tobytes()
    assert (copy_to_host(out) == 256).all() and searching.read_text() == kept


@on_a_gpu_only
def test_there_is_no_search_while_a_graph_is_recorded(searching, monkeypatch):
    from gpt2_numba.gpu import cublaslt
    from gpt2_numba.gpu.gemm import gemm
    from gpt2_numba.gpu.graph import Graphs

    a, out, larger = (to_device(np.ones((size, size), np.float32)) for size in (128, 128, 256))
    gemm(to_device(np.ones((256, 256), np.float32)), larger, larger, rows=256, columns=256, inner=256)  # loads the library
    kept = searching.read_text()
    monkeypatch.setattr(cublaslt, "fastest", lambda *_: pytest.fail("searched"))
    graphs = Graphs(True)
    graphs.run("product", lambda: None)
    graphs.run("product", lambda: gemm(out, a, a, rows=128, columns=128, inner=128))
    assert (copy_to_host(out) == 128).all()
    assert searching.read_text() == kept
