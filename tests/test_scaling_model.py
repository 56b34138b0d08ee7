"""The model of the step time on many GPUs (gpt2_numba/planning, dev/scaling): its formulas checked by hand, and the documents against its results."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from dev.scaling import report, step
from dev.scaling.figures import ONE_GPU, OUR_RUNS, PUBLISHED_RUNS
from dev.scaling.one_gpu import BENCH, measured
from gpt2_numba.config import parse_descriptor
from gpt2_numba.memory_plan import plan_memory
from gpt2_numba.options import Options
from gpt2_numba.parallel.shards import Sharing
from gpt2_numba.planning import collectives, many_gpus
from gpt2_numba.planning.collectives import Fabric, message_ms
from gpt2_numba.planning.figures import FIGURES
from gpt2_numba.planning.layers_alike import PlannedSharing

KINDS = "all_reduce", "reduce_scatter", "all_gather"
FABRIC = Fabric(gpus_per_host=8, nvlink={kind: {8: 400} for kind in KINDS}, network=200, latency=1)  # GB/s, GB/s, µs


DURING, PER_LAYER, PER_LAYER_Z2 = (
    "compute slowed during a message", "compute slowed by a concurrent message, -z 0, 1", "compute slowed by a concurrent message, -z 2",
)  # fmt: skip


@pytest.fixture
def put(monkeypatch):
    """Function that sets an input to another value."""
    return lambda name, value: monkeypatch.setitem(FIGURES, name, FIGURES[name]._replace(value=value))


@pytest.fixture
def figures(put):
    """Inputs that are easy to calculate with: messages do not slow compute."""
    for name, value in ((DURING, 0.0), (PER_LAYER, 0.0), (PER_LAYER_Z2, 0.0)):
        put(name, value)


# ----------------------------------------------------------------------------------------------- documents and inputs


@pytest.mark.parametrize("document", ["scaling.md", "many_gpus.md"])
def test_the_document_is_up_to_date(document):
    text = (report.DOCS / document).read_text()
    assert text == report.with_blocks(text, report.BLOCKS[document]()), "run: python -m dev.scaling --write"


def test_the_document_about_planning_is_up_to_date():
    """In a process of its own that sees no GPU: scratch of some kernels depends on the GPU, and has another size in the simulator."""
    code = "import sys; from dev.scaling.report import BLOCKS, with_blocks; text = sys.stdin.read(); print(with_blocks(text, BLOCKS['planning.md']()), end='')"
    text = (report.DOCS / "planning.md").read_text()
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=text, env=environment, cwd=report.DOCS.parent, capture_output=True, encoding="utf-8"
    )
    assert done.stdout == text, done.stderr or "run: python -m dev.scaling --write"


def test_the_picture_is_up_to_date():
    with Image.open(report.PICTURE) as picture:
        assert picture.text["Description"] == str(report.drawn()), "run: python -m dev.scaling --write"


def test_a_missing_or_repeated_block_is_an_error():
    text = "before\n" + report.BLOCK.format("one", "old\n") + "\nafter"
    assert report.with_blocks(text, {"one": "new"}) == text.replace("old", "new")
    for wrong in (text + text, "nothing"):
        with pytest.raises(ValueError, match="'one' must occur in the document exactly once"):
            report.with_blocks(wrong, {"one": "new"})


def test_measured_figures_name_their_measurement():
    for name, figure in FIGURES.items():
        assert figure.known in ("measured", "published", "assumed") and figure.source, name
        if figure.known == "measured":
            assert any(folder.name in figure.source for folder in BENCH.glob("2*")), f"{name}: name the folder in dev/bench"


@pytest.mark.parametrize("gpus", [2, 4])
def test_bandwidths_match_the_benchmarks(gpus):
    rows = json.loads((BENCH / f"2026-11-22-h200x{gpus}-collectives" / "result.json").read_text())["times"]
    found = {row["operation"]: row["bus_bytes_per_second"] / 1e9 for row in rows if row["bytes"] == 256 * 2**20}
    assert {kind: round(rate) for kind, rate in found.items()} == {kind: FIGURES[f"NVLink, {kind}, {gpus} GPUs"].value for kind in KINDS}


def test_fitted_figures_reproduce_the_total_loss_of_our_runs():
    """The shares by which messages slow concurrent compute."""
    runs = [run for folder in OUR_RUNS for run in report.our_runs(folder)]
    for stages in ((0, 1), (2,)):
        pairs = [(run, report.check(run, run.one_ms)) for run in runs if run.stage in stages]
        assert sum(predicted.lost for _, predicted in pairs) == pytest.approx(sum(run.lost_ms for run, _ in pairs), rel=0.02)


def test_statements_of_the_text_about_rows_and_parts():
    for model in ("d12", "d48"):  # all matrices are cut into equal parts, for any number of GPUs
        assert all(Sharing(parse_descriptor(model), 0, ranks, 1).state.even for ranks in report.GPUS)
    rows = {ranks: report.modelled("d12", False, ranks, stage=1, network=report.NETWORKS[0]).B for ranks in report.GPUS}
    assert [ranks for ranks, B in rows.items() if B < 16] == [64, 128, 256, 512] and rows[512] == 1


# ---------------------------------------------------------------------------------------------------------- messages


def test_a_large_message_on_one_host_uses_the_ring(figures):
    nbytes = 4e9  # at 400 GB/s 10 ms; each of 8 GPUs sends 7/8 of it
    expected = (8.4 + 7 * 3.4) / 1000 + 10 * 7 / 8
    assert message_ms("reduce_scatter", nbytes, 8, FABRIC) == pytest.approx(expected)
    assert message_ms("all_gather", nbytes, 8, FABRIC) == pytest.approx(expected)
    assert message_ms("all_reduce", nbytes, 8, FABRIC) == pytest.approx((8.4 + 14 * 3.4) / 1000 + 2 * 10 * 7 / 8)
    assert message_ms("all_reduce", nbytes, 1, FABRIC) == 0


def test_bandwidth_depends_on_the_operation_and_the_gpu_count(figures):
    fabric = FABRIC._replace(nvlink={"all_gather": {2: 200, 4: 400}, "reduce_scatter": {2: 100}})
    for kind, ranks, bandwidth in (("all_gather", 2, 200), ("all_gather", 3, 300), ("all_gather", 8, 400), ("reduce_scatter", 4, 100)):
        large = message_ms(kind, 8e9, ranks, fabric) - message_ms(kind, 4e9, ranks, fabric)
        assert large == pytest.approx(4e9 * (ranks - 1) / ranks / bandwidth / 1e6), kind


def test_between_hosts_the_slower_of_nvlink_and_network_limits(figures):
    nbytes = 20e9  # at 200 GB/s 100 ms; 32 GPUs on 4 hosts: 31 steps, 3 of them between hosts, each 14 + 1 µs
    expected = (8.4 + 28 * 3.4 + 3 * 15) / 1000 + 100 * 31 / 32
    assert message_ms("reduce_scatter", nbytes, 32, FABRIC) == pytest.approx(expected)
    assert message_ms("reduce_scatter", nbytes, 32, FABRIC._replace(network=1600)) == pytest.approx(expected - 50 * 31 / 32)


def test_a_small_all_reduce_between_many_hosts_uses_the_tree(figures):
    # 512 GPUs, 64 hosts: up and down, 7 steps inside at 0.6 µs and 6 between at 5 + 1; the ring would need 1,022 steps
    assert message_ms("all_reduce", 8, 512, FABRIC) == pytest.approx((6.8 + 2 * (7 * 0.6 + 6 * 6)) / 1000, rel=1e-3)
    # reduce-scatter has no tree: 448 steps inside at 1 µs, the minimum over a network, 63 between at 2.7 + 1
    assert message_ms("reduce_scatter", 8, 512, FABRIC) == pytest.approx((6.8 + 448 * 1.0 + 63 * 3.7) / 1000, rel=1e-3)


def test_contents_of_the_gradient_messages(monkeypatch):
    calls = []
    monkeypatch.setattr(many_gpus, "message_ms", lambda *call: calls.append(call) or 0.0)
    many_gpus._gradient_messages(measured("d48"), PlannedSharing(parse_descriptor("d48"), 8, 1), FABRIC)
    vectors, layer, embeddings = calls
    assert layer[:3] == ("reduce_scatter", 2 * 12 * 1600**2, 8)
    assert embeddings[:3] == ("reduce_scatter", 2 * (50304 + 1024) * 1600, 8)
    assert vectors[:3] == ("all_reduce", 2 * (48 * 13 + 2) * 1600, 8)


def test_parameters_are_sent_while_the_next_are_updated(monkeypatch):
    monkeypatch.setattr(many_gpus, "message_ms", lambda kind, nbytes, *_: nbytes / 2)
    gpu, sharing = measured("d12"), PlannedSharing(parse_descriptor("d12"), 4, 1)
    pieces = many_gpus._parameter_messages(gpu, sharing, FABRIC)
    update_ms = [n / sharing.state.global_count * gpu.adamw for n in (50304 * 768 / 4, 1024 * 768 / 4)]
    assert [ms for ms, _ in pieces[:2]] == pytest.approx(update_ms) and len(pieces) == 7
    assert [message for _, message in pieces] == [50304 * 768, 1024 * 768, *(12 * n * 768**2 for n in (3, 1, 4, 4)), 0.0]
    assert sum(ms for ms, _ in pieces) == pytest.approx(sharing.state.local_count() / sharing.state.global_count * gpu.adamw)


# ------------------------------------------------------------------------------------------------------------ a step


def test_the_step_waits_for_messages_that_compute_does_not_hide(figures, put):
    pieces = [(2.0, 1.0), (2.0, 3.0), (1.0, 2.0)]  # made at 2, 4, 5; sent from 2 to 3, 4 to 7, 7 to 9
    assert many_gpus.overlap(pieces) == (0, 4)
    assert many_gpus.overlap([(9.0, 1.0), (9.0, 0.0)]) == (0, 0)
    # One buffer: the third piece is made at 5, but compute waits until 7 for the second to be sent; then it sends the third until 9.
    assert many_gpus.overlap(pieces, keep_step=True) == (0, 4)
    assert many_gpus.overlap([*pieces, (3.0, 0.0)]) == (0, 1) and many_gpus.overlap([*pieces, (3.0, 0.0)], keep_step=True) == (0, 2)
    # Half of the time under a message is lost: 0.5 of the second piece, which is made at 4.5; 0.5 of the third, made at 6; sent until 7.5, 9.5.
    put(DURING, 0.5)
    assert many_gpus.overlap(pieces) == (1.0, 3.5)
    # A tenth more for pieces with a concurrent message: those of 2 and 1, which are then made at 4.7 and 6.3.
    put(PER_LAYER, 0.1)
    assert many_gpus.overlap(pieces) == pytest.approx((1.3, 3.4))
    assert many_gpus.overlap([(9.0, 0.0), (9.0, 0.0)]) == (0, 0)
    # The message of the first piece, 1 of 2, makes the second take 2.5 + 20 %: the second is sent until 7.9, the third until 9.9.
    put(PER_LAYER_Z2, 0.2)
    assert many_gpus.overlap(pieces, keep_step=True) == pytest.approx((0.9 + 0.7, 9.9 - 6.6))


@pytest.mark.parametrize("model", ["d12", "d48"])
def test_on_one_gpu_the_step_is_the_measured_one(model):
    training, _ = (json.loads((BENCH / folder / "result.json").read_text()) for folder in ONE_GPU[model])
    words = training["command"].split()
    tokens = int(words[words.index("-d") + 1])
    assert step.step(model, ranks=1, tokens=tokens, stage=0, fabric=FABRIC).ms == pytest.approx(training["median_ms"])


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("model", ["d12", "d48"])
def test_without_message_time_n_gpus_are_n_times_as_fast_as_one(monkeypatch, model, stage):
    monkeypatch.setattr(many_gpus, "message_ms", lambda *_: 0.0)
    gpu = measured(model)
    tokens = 4 * gpu.B * gpu.T
    one = step.step(model, ranks=1, tokens=tokens, stage=0, fabric=FABRIC)
    many = step.step(model, ranks=64, tokens=64 * tokens, stage=stage, fabric=FABRIC)
    sharing = Sharing(parse_descriptor(model), 0, 64, stage)
    everything, own, counted = sharing.state.global_count, sharing.state.local_count(), sharing.counted.local_count()
    more = 4 * many_gpus._sharded_gradients(gpu, PlannedSharing(parse_descriptor(model), 64, stage))
    assert many.ms == pytest.approx(one.micro_steps + more + (one.norm * counted + one.adamw * own) / everything)
    assert (more > 0) == (stage == 2)


def test_messages_count_once_per_step_but_with_z_2_in_every_micro_step():
    gpu = measured("d48")
    steps = [step.step("d48", ranks=4, tokens=4 * gpu.B * gpu.T * 8, stage=stage, fabric=FABRIC) for stage in (0, 1, 2)]
    all_of_it, layers = 1557686400, 48 * 12 * 1600**2  # a GPU sends 3/4 of them in a reduce-scatter or an all-gather, 2 bytes each
    least = [elements * 2 * 3 / 4 / 400e6 for elements in (2 * all_of_it, 2 * all_of_it, 2 * all_of_it + 7 * layers)]
    assert [one.count for one in steps] == [8, 8, 8]
    assert all(1 < one.messages / ms < 1.5 for one, ms in zip(steps, least))
    assert all(one.gradients + one.parameters < one.messages for one in steps)
    assert steps[0].lost == pytest.approx(steps[0].slowed + steps[0].gradients + steps[0].norm - gpu.norm)
    sharing = Sharing(parse_descriptor("d48"), 0, 4, 1)
    own = (gpu.norm * sharing.counted.local_count() + gpu.adamw * sharing.state.local_count()) / sharing.state.global_count
    assert steps[1].lost == pytest.approx(sum(steps[1].parts.values()) - steps[1].micro_steps - own)


def test_tokens_that_cannot_be_divided_are_refused():
    with pytest.raises(ValueError, match=r"4096 tokens cannot be divided into rows of 1024 for 8 GPUs"):
        step.step("d12", ranks=8, tokens=4096, stage=0, fabric=FABRIC)


def test_measured_micro_batches_are_used_as_measured():
    gpu = measured("d12")
    assert gpu.micro_step_share(64) == pytest.approx(1)
    eight_rows = (112.764 - gpu.norm - gpu.adamw) / 8  # 112.764 ms from the file, 8 micro-steps
    assert gpu.micro_step_share(8) * gpu.micro_step == pytest.approx(eight_rows)
    assert gpu._replace(shares=((8, 0.2), (16, 0.3))).micro_step_share(12) == pytest.approx(0.25)


@pytest.mark.parametrize("model, sizes", [("d12", [1, 2, 4, 8, 16, 32, 64]), ("d48", [1, 2, 4, 8, 16])])
def test_micro_batches_were_measured_down_to_one_row(model, sizes):
    gpu = measured(model)
    assert [rows for rows, _ in gpu.shares] == sizes
    shares = [gpu.micro_step_share(B) / B for B in sizes]
    assert shares == sorted(shares, reverse=True)  # the fewer the rows, the longer each takes


@pytest.mark.parametrize("model, B", [("d12", 64), ("d12", 16), ("d48", 16)])
def test_memory_matches_the_plan_of_the_trainer(model, B):
    config = parse_descriptor(model)
    for ranks in (2, 8):
        for stage in (0, 1, 2):
            planned = plan_memory(config, B, 1024, Options("gpu", "bf16", recompute=0), Sharing(config, 0, ranks, stage)).nbytes / 2**30
            assert step.memory_gib(model, ranks, stage, B) == pytest.approx(planned, rel=0.01)


# -------------------------------------------------------------------------------------------------------- comparisons


def test_our_runs_are_read_from_the_benchmark_result(tmp_path, monkeypatch):
    gpu = measured("d12")
    row = {"model": "d12", "gpus": 1, "zero_stage": 0, "micro_steps": 2, "B": gpu.B, "T": gpu.T, "step_ms": 200.0}
    other, unlike = {**row, "step_ms": 204.0}, {**row, "micro_steps": 1, "step_ms": 100.0}
    two = {**row, "gpus": 2, "zero_stage": 1, "step_ms": 206.0, "messages_alone_ms": 3.0, "exposed_ms": 2.5, "arena_gib": 25.7}
    (tmp_path / "result.json").write_text(json.dumps({"rows": [row, unlike, other, two]}))
    source = (BENCH / "many_gpus.py").read_text()
    assert all(f'"{name}"' in source for name in two), "dev.bench.many_gpus uses other field names"
    monkeypatch.setattr(report, "OUR_RUNS", [tmp_path])
    (run,) = report.our_runs(tmp_path)
    assert (run.ranks, run.stage, run.tokens, run.ms, run.one_tokens, run.alone_ms) == (2, 1, 4 * 65536, 206.0, 2 * 65536, (200.0, 204.0))
    assert run.tokens / run.one_ms == pytest.approx(run.one_tokens / 200 + run.one_tokens / 204)
    predicted = report.check(run, 200.0)
    unscaled = step.step("d12", ranks=2, tokens=4 * 65536, stage=1, fabric=collectives.fabric("400 Gbit/s a GPU"))
    assert 198 < predicted.ms < 206 < unscaled.ms and predicted.messages == pytest.approx(unscaled.messages)
    assert report.check(run, 204.0).ms - predicted.ms == pytest.approx(4, rel=0.02)
    assert report.checks_table().splitlines()[2].startswith("| ours, 2 H200 | d12 | `-z 1`, 262,144 | 206.0 | 98.0% |")
    lines = report.messages_table().splitlines()[2:]
    assert len(lines) == 1 and "| 3.00 |" in lines[0] and "| 2.50 |" in lines[0]
    assert "| `-z 1` | 2 | 1,272,544 | 642,510 to 655,360 | 98.0% | 99.0% |" in report.our_table()


def test_published_speeds_become_milliseconds_of_a_step():
    by_name = {(run.name, run.model): run for run in PUBLISHED_RUNS}
    assert by_name["llm.c, 8 H100", "d48"].ms == pytest.approx(2750) and by_name["llm.c, 8 H100", "d12"].ms == pytest.approx(140)
    assert by_name["llm.c, 2 H200", "d12"].one_ms == pytest.approx(524288 / 581)
    assert by_name["llm.c, 2 H200", "d12"].ms == pytest.approx(1048576 / 1161)
