"""Our trainer against the one in PyTorch (dev/oracle/train_torch.py), step by step, and the comparison of their speed, at tiny size.

PyTorch is an optional dependency (`pip install -e '.[oracle]'`); without it these tests are skipped with a message.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2_numba.config import GPT2Config, parameter_shapes
from gpt2_numba.data.loader import DataLoader
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.initial_weights import initial_weights
from gpt2_numba.model import GPT2
from gpt2_numba.options import Options
from gpt2_numba.train import main as train_ours
from gpt2_numba.training.model_file import read_model_file, write_model_file
from gpt2_numba.training.schedules import learning_rate

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[oracle]' to compare the trainer with it")

from dev.bench import against_torch  # noqa: E402  (it needs torch)
from dev.bench.process_memory import run_process  # noqa: E402
from dev.oracle import train_torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CONFIG = GPT2Config(L=3, NH=2, C=32, max_T=48, V=257)
B, T, MICRO_STEPS, STEPS = 2, 40, 2, 10
PEAK, WARM_UP, FINAL, DECAY = 1e-3, 4, 0.1, 0.5
SCHEDULE = f"-x {STEPS} -l {PEAK} -u {WARM_UP} -q {FINAL} -c {DECAY} --device cpu".split()
HALF_ULP = 2.0**-24  # one rounding to float32
STEP = re.compile(r"^step +\d+/\d+ \| loss +([\d.]+) .*\| norm +([\d.]+) ", re.M)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """These models are so small that threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the processes that are started
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """The README in bytes."""
    path = tmp_path_factory.mktemp("tokens") / "readme_train_000000.bin"
    write_shard(path, np.frombuffer((ROOT / "README.md").read_bytes(), np.uint8))
    return str(path)


def losses_and_norms(text):
    found = np.array(STEP.findall(text), np.float64)
    assert found.shape == (STEPS, 2), text
    return found.T


def check_losses(ours, theirs):
    """A loss is a mean of logarithms of sums over 257 logits: a few roundings in the first step. Later the parameters differ too, each step
    by as much again at most (test_torch_oracle.py). And a printed loss is off by half of its sixth decimal place, on either side."""
    step = np.arange(STEPS)
    bound = (4 + 4 * step) * HALF_ULP * theirs + 1e-6
    print(f"\n{'step':>4}{'loss':>12}{'PyTorch':>12}{'error':>12}{'bound':>12}")
    for row in zip(step, ours, theirs, np.abs(ours - theirs), bound):
        print("{:4}{:12.6f}{:12.6f}{:12.1e}{:12.1e}".format(*row))
    assert (np.abs(ours - theirs) <= bound).all()


def test_ten_steps_of_both_programs(shard, tmp_path, capsys):
    flags = f"-i {shard} -j {shard} -e {CONFIG} -b {B} -t {T} -d {B * T * MICRO_STEPS} -v 5 -m 3".split() + SCHEDULE
    printed, validations = [], []
    for main, extra in ((train_ours, ["-s", "0"]), (train_torch.main, ["-o", str(tmp_path)])):
        assert main(flags + extra) == 0
        printed.append(capsys.readouterr().out)
        validations.append(np.array(re.findall(r"^val loss ([\d.]+)", printed[-1], re.M), np.float64))
    (losses, norms), (their_losses, their_norms) = map(losses_and_norms, printed)
    assert their_norms.max() > 1.1, "otherwise clipping is not tested"
    check_losses(losses, their_losses)
    np.testing.assert_allclose(norms, their_norms, rtol=5e-6, atol=1e-4)  # printed with four decimal places
    assert len(validations[0]) == 3
    np.testing.assert_allclose(*validations, rtol=0, atol=1e-5)
    # The step line is ours, digits apart; and the log has as many lines.
    first_lines = [re.sub(r"\d+", "0", next(line for line in text.splitlines() if line.startswith("step"))) for text in printed]
    assert first_lines[0] == first_lines[1]
    assert len((tmp_path / "main.log").read_text().splitlines()) == STEPS + 3


def test_two_processes_with_zero_start_from_a_model_file(shard, tmp_path):
    """Against our model on the batches of both ranks, one after the other: the mean of their gradients is what the processes exchange."""
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(size=shape).astype(np.float32) * 0.08 for name, shape in parameter_shapes(CONFIG).items()}
    for name in ("ln1w", "ln2w", "lnfw"):
        weights[name] += 1
    weights["wte"][CONFIG.V :] = 0
    path = tmp_path / "model.bin"
    write_model_file(path, CONFIG, np.concatenate([tensor.ravel() for tensor in weights.values()]))
    flags = f"-i {shard} -j {shard} -e {path} -b {B} -t {T} -d {2 * B * T * MICRO_STEPS} -v 0 --zero 1".split() + SCHEDULE
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dev.oracle.train_torch", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    model = GPT2(CONFIG, B, T, Options("cpu"))
    model.load_params(weights)
    loaders = [DataLoader([shard], B, T, rank=rank, ranks=2, shuffle=True) for rank in range(2)]
    losses, norms = [], []
    for step in range(STEPS):
        model.zero_grad()
        for _ in range(MICRO_STEPS):
            for loader in loaders:
                inputs, targets = loader.next_batch()
                model.forward(inputs)
                model.backward(targets, grad_accum_steps=2 * MICRO_STEPS)
        loss, norm, _ = model.measure(1.0).wait()
        model.update(step, learning_rate("cosine", step, STEPS, PEAK, WARM_UP, FINAL), DECAY)
        losses.append(loss)
        norms.append(norm)
    their_losses, their_norms = losses_and_norms(done.stdout)  # printed once, by rank 0
    check_losses(np.array(losses), their_losses)
    np.testing.assert_allclose(norms, their_norms, rtol=5e-6, atol=1e-4)


@pytest.mark.parametrize("extra", ["--rows-at-once 1", "--flash 0", "--dtype bf16"])
def test_other_ways_to_compute_the_same(shard, capsys, extra):
    flags = f"-i {shard} -j {shard} -e {CONFIG} -b {B} -t {T} -d {B * T * MICRO_STEPS} -v 0".split() + SCHEDULE
    printed = []
    for more in ("", extra):
        assert train_torch.main(flags + more.split()) == 0
        printed.append(losses_and_norms(capsys.readouterr().out)[0])
    if extra != "--dtype bf16":
        check_losses(*printed)
        return
    # 2^-9 is one rounding to bfloat16. At the start logits are about 0.02 · sqrt(32) = 0.1, and a loss changes with each of them by less
    # than itself: in the first step by less than 0.1 · 2^-9, with all signs random much less. It then grows with the step.
    difference = np.abs(printed[0] - printed[1])
    assert difference.max() > 0, "nothing is rounded"
    assert (difference < (1 + np.arange(STEPS)) * 0.1 * 2.0**-9).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_at_the_start(precision):
    """The draw itself, rounded in neither precision; and the rows of wte are padded."""
    shapes = parameter_shapes(CONFIG)
    want = initial_weights(CONFIG, shapes, seed=42)
    settings, own = train_torch.parse(f"-i x -j x -e {CONFIG} --dtype {precision} --device cpu".split())
    settings = train_torch.complete(settings, own)
    model = train_torch.make_model(settings, own, *train_torch.start_weights(settings), torch.device("cpu"))
    for name, got in model.to_numpy().items():
        assert got.shape == shapes[name] and np.array_equal(got, want[name]), name


def test_small_updates_take_effect_at_once_in_bfloat16(shard, capsys):
    """Steps of 1e-5 are a tenth of a unit in the last place of most weights, 1.2e-4. In bf16 they lower the loss as much as in fp32, within
    a tenth. If those of large weights were rounded away, more than a quarter of the fall would be missing."""
    flags = f"-i {shard} -j {shard} -e L=3,NH=2,C=64,T=48,V=257 -b 8 -t 48 -d 384 -v 0 -x 4 -k constant -u 0 --device cpu".split()

    def losses(precision, rate):
        assert train_torch.main([*flags, "--dtype", precision, "-l", rate]) == 0
        return np.array([float(loss) for loss, _ in STEP.findall(capsys.readouterr().out)])

    without_learning, fp32, bf16 = losses("fp32", "1e-20"), losses("fp32", "1e-5"), losses("bf16", "1e-5")
    fall, error = (without_learning - fp32)[1:], np.abs(bf16 - fp32)[1:]
    print(fall, error)
    assert (error < fall / 10).all()


def test_model_files_in_bfloat16(tmp_path):
    weights = initial_weights(CONFIG, parameter_shapes(CONFIG))
    flat = torch.from_numpy(np.concatenate([tensor.ravel() for tensor in weights.values()])).bfloat16()
    write_model_file(tmp_path / "model.bin", CONFIG, flat.view(torch.int16).numpy().view(np.uint16))
    pieces = list(train_torch.pieces_of(*read_model_file(tmp_path / "model.bin")))
    assert len(pieces) == 4 + 12 * CONFIG.L and pieces[2][:2] == ("ln1w", 0)
    assert np.array_equal(np.concatenate([values.ravel() for *_, values in pieces]), flat.float().numpy())


def test_biases_and_layernorms_do_not_decay():
    settings, own = train_torch.parse(f"-i x -j x -e {CONFIG} -c 0.5 --device cpu".split())
    settings = train_torch.complete(settings, own)
    model = train_torch.make_model(settings, own, *train_torch.start_weights(settings), torch.device("cpu"))
    optimizer = train_torch.make_optimizer(settings, model, ranks=1)
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay.pop(id(parameter)) == (0.0 if name.endswith("bias") or ".ln" in name or name.startswith("ln") else 0.5), name
    assert not decay


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("-i {shard} -j {shard} -z 2", "-z must be 0 or 1 here, got 2"),
        ("-i {shard} -j {shard} -r 0", "got --recompute"),
        ("-i {shard} -j {shard} -b 4 --rows-at-once 3", "must divide the rows of a micro-batch, -b 4, got 3"),
        ("-i {shard} -j {shard} -b auto", "-b must be a number"),
        ("-i {shard} -j {shard} --flash cudnn", "needs a GPU and bf16"),
        ("-i {shard} -j {shard} -t 64 -d 100", "-d must be a multiple of B * T * processes = 256, got 100"),
        ("-i {shard} -j {shard} -e L=1,NH=1,C=8,T=16,V=257 -t 17", "longest context, 16, got 17"),
        ("-i {shard}", "go together"),
        ("", "token shards must be given"),
        ("--compiled 1", "unknown flag --compiled"),
        ("--compile 2", "invalid choice"),
    ],
)
def test_mistakes_on_the_command_line(shard, capsys, flags, expected):
    assert train_torch.main(["--device", "cpu", *flags.format(shard=shard).split()]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and expected in printed.err


def test_without_pytorch(shard, capsys, monkeypatch):
    monkeypatch.setattr(train_torch, "torch", None)
    assert train_torch.main(["-i", shard, "-j", shard]) == 2
    assert "pip install -e '.[oracle]'" in capsys.readouterr().err


def test_a_run_that_diverges_ends(shard, capsys):
    flags = f"-i {shard} -j {shard} -e {CONFIG} -b {B} -t {T} -v 0 -l 1e30 -x 9 --device cpu".split()
    assert train_torch.main(flags) == 2
    assert "has diverged" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- dev.bench.against_torch


def test_the_comparison(tmp_path, capsys):
    flags = "--device cpu --precision fp32 --tokenizer bytes --steps 5 --rounds 1 -t 16 --models L=1,NH=2,C=16,T=16,V=257".split()
    assert against_torch.main([*flags, "--text", str(ROOT / "README.md"), "--out", str(tmp_path)]) == 0
    printed, result = capsys.readouterr().out, json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "table.txt").read_text().strip() in printed and "times as fast" in printed
    (figures,) = result["models"].values()
    assert [run["program"] for run in result["runs"]] == ["ours", "torch"] and all(run["ok"] for run in result["runs"])
    assert figures["losses_agree"] and max(figures["bounds"]) <= 20.1 * HALF_ULP * 6 + 1e-6
    for program in ("ours", "torch"):
        one = figures[program]
        assert len(one["losses"]) == len(one["norms"]) == 5 and one["memory_mib"] > 20 and one["own_memory_mib"] > 0
        (run,) = (run for run in result["runs"] if run["program"] == program)
        assert one["median_ms"] == pytest.approx(np.median(run["step_ms"][3:]), abs=0.01)
        assert one["tokens_per_second"] == pytest.approx(8 * 16 / one["median_ms"] * 1e3, rel=0.01)
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in result["versions"]["torch"]


def test_losses_agree_within_a_bound_that_grows_with_the_gradient():
    norms, fall = [20.0, 10.0], [11.0, 10.0]
    first, second = against_torch.loss_bounds(fall, norms, significant_bits=8)
    assert first == pytest.approx(2**-8 * 4 * 0.02 * 20, rel=1e-2) and second == pytest.approx(2**-8 * (4 * 0.02 * 10 + 1), rel=1e-2)
    assert against_torch.loss_bounds(fall, norms, significant_bits=24).max() < 1e-5
    ours = {"losses": fall, "norms": norms}
    for beyond in (0.9, 1.1):
        compared = against_torch.compare_losses(ours, {"losses": [11.0, 10.0 + beyond * second], "norms": norms}, significant_bits=8)
        assert compared["losses_agree"] == (beyond < 1) and compared["largest_difference"]["step"] == 2
        assert compared["share_of_bound"] == {"step": 2, "share": pytest.approx(beyond, abs=2e-3)}


@pytest.mark.parametrize("apart, code, words", [(0, 0, "the losses agree"), (0.1, 1, "the losses DO NOT AGREE")])
def test_losses_that_do_not_agree_fail_the_comparison(tmp_path, monkeypatch, capsys, apart, code, words):
    monkeypatch.setattr(against_torch, "run_process", Programs(apart=apart))
    flags = "--device cpu --tokenizer bytes --steps 5 --rounds 1".split()
    assert against_torch.main([*flags, "--text", str(ROOT / "README.md"), "--out", str(tmp_path)]) == code
    assert words in capsys.readouterr().out


def test_the_bound_depends_on_precision_and_device(comparison):
    for precision, bits in (("bf16", 8), ("fp32", 11)):
        assert comparison(Programs(), "--precision", precision, "--rounds", "1").significant_bits() == bits


class Programs:
    """Stands for run_process: writes what a program would print, and notes the commands. apart: by how much the losses differ."""

    def __init__(self, fails=lambda command: None, seconds=10, apart=0):
        self.fails, self.seconds, self.apart, self.commands = fails, seconds, apart, []

    def __call__(self, command, console, seconds, watch):
        self.commands.append(" ".join(command[2:]))
        reason = self.fails(self.commands[-1])
        line = "step {:4}/5 | loss {:.6f} (+nanz)| norm 1.5000 (+nanz)| lr 1.00e-03 | {:.2f} ms |   n/a MFU | 1 tok/s | 00:00 left\n"
        first = 6 + self.apart * ("torch" in self.commands[-1])
        steps = "".join(line.format(step, first - step / 10, 10 + step) for step in range(1, 6))
        Path(console).write_text(reason or steps)
        return {"exit_code": 1 if reason else 0, "seconds": self.seconds, "memory_mib": 1000}


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    def make(programs, *flags):
        monkeypatch.setattr(against_torch, "run_process", programs)
        monkeypatch.setattr(against_torch, "MemoryWatch", lambda: None)
        arguments = against_torch.parse(["--out", str(tmp_path), "--device", "gpu", "--steps", "5", "--models", "d12,d48", *flags])
        comparison = against_torch.Comparison(arguments, tmp_path / "tokens.bin")
        comparison.measure()
        return comparison

    return make


def test_the_programs_take_turns(comparison):
    programs = Programs()
    runs = comparison(programs).runs
    order = [(run["model"], run["program"]) for run in runs]
    assert order[:4] == [("d12", "ours"), ("d12", "torch"), ("d48", "ours"), ("d48", "torch")]
    assert order[4:] == [("d12", "torch"), ("d12", "ours"), ("d48", "torch"), ("d48", "ours")]
    shared = "-e d12 -b 64 -t 1024 -d 524288 -x 5 "
    assert programs.commands[0].startswith("gpt2_numba.train ") and shared in programs.commands[0] and "-r 0" in programs.commands[0]
    assert programs.commands[1].startswith("dev.oracle.train_torch ") and shared in programs.commands[1]
    assert "--compile 1 " in programs.commands[1] and "--compile blocks " in programs.commands[3] and "-b 16 " in programs.commands[3]
    rates = [re.search(r" -l (\S+)", command)[1] for command in programs.commands[:4]]
    assert rates == ["0.0006", "0.0006", "0.00006", "0.00006"]


def test_too_little_memory_halves_the_rows(comparison):
    done = comparison(
        Programs(lambda command: "CUDA out of memory" if "torch" in command and "once 16" not in command else None), "--rounds", "1"
    )
    tries = [(run["command"].partition("--rows-at-once ")[2], run["ok"]) for run in done.runs if run["program"] == "torch"]
    assert tries[:3] == [("", False), ("32", False), ("16", True)]
    figures = against_torch.summarize(done, "d12")
    assert figures["rows_at_once"] == 16 and figures["torch"]["median_ms"] == 14.5
    assert "--rows-at-once 16" in against_torch.speed_table({"d12": figures})


def test_a_failed_compilation_is_left_out(comparison):
    done = comparison(Programs(lambda command: "no compiler" if "--compile 1" in command else None), "--rounds", "2", "--models", "d12")
    assert [(run["program"], run["ok"]) for run in done.runs] == [
        ("ours", True), ("torch", False), ("torch", True), ("torch", True), ("ours", True),
    ]  # fmt: skip
    assert against_torch.summarize(done, "d12")["compile"] == "0"


def test_no_round_begins_without_time(comparison, capsys):
    done = comparison(Programs(seconds=300))
    assert [run["round"] for run in done.runs] == [1, 1, 1, 1]
    assert "no round 2 of d12: the first took 600 s" in capsys.readouterr().out


def test_a_process_that_takes_too_long_is_ended_with_its_children(tmp_path):
    child = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('begun'); time.sleep(60)"
    result = run_process([sys.executable, "-c", child], tmp_path / "console.txt", seconds=3, watch=None)
    assert result["exit_code"] is None and result["seconds"] < 30 and (tmp_path / "console.txt").read_text() == "begun\n"
    quick = run_process([sys.executable, "-c", "raise SystemExit(7)"], tmp_path / "console.txt", seconds=30, watch=None)
    assert quick["exit_code"] == 7 and math.isfinite(quick["memory_mib"])


def test_the_built_in_corpus_serves_as_text(tmp_path, monkeypatch):
    monkeypatch.setattr(against_torch, "BUILT_IN_BYTES", 50_000)
    about = against_torch.write_tokens(None, "bytes", tmp_path / "tokens.bin")
    assert about.startswith("built-in corpus, 4") and (tmp_path / "tokens.bin").stat().st_size > 80_000
