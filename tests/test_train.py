"""The trainer from its command line: it learns, it is reproducible to the bit, and it reports a mistake in one line."""

import subprocess
import sys

import numpy as np
import pytest

from gpt2_numba import train as trainer
from gpt2_numba.config import parse_descriptor
from gpt2_numba.data.evaluation.multiple_choice import Example, write_examples
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.kernel_sets import KernelSet
from gpt2_numba.memory_fit import check_memory, memory_needed
from gpt2_numba.memory_plan import plan_memory
from gpt2_numba.options import Options
from gpt2_numba.training import preparation
from gpt2_numba.training.log import read_main_log
from gpt2_numba.training.preparation import choose_machine
from gpt2_numba.training.settings import parse_settings, with_defaults
from gpt2_numba.training.stop_request import StopRequest

V = 37
TINY = ["-e", f"L=1,NH=2,C=16,V={V}", "-b", "2", "-t", "8", "-x", "4", "-m", "2", "-v", "2", "-s", "0", "--device", "cpu"]


@pytest.fixture
def shards(tmp_path):
    """Flags that name a training and a validation shard: a repeating text, which can be learnt."""
    rng = np.random.default_rng(5)
    phrase = rng.integers(0, V, 11)
    for name, repeats in (("train", 60), ("val", 20)):
        write_shard(tmp_path / f"{name}.bin", np.tile(phrase, repeats))
    return ["-i", str(tmp_path / "train.bin"), "-j", str(tmp_path / "val.bin")]


def run(argv):
    return trainer.train(choose_machine(parse_settings(argv)))


def test_a_run_learns_and_writes_a_log_and_a_plot(shards, tmp_path, capsys):
    directory = tmp_path / "log"
    assert trainer.main([*TINY, *shards, "-x", "60", "-v", "20", "-l", "0.01", "-o", str(directory)]) == 0
    series = read_main_log(directory / "main.log")
    steps, losses = series["val_loss"]
    assert list(steps) == [0, 20, 40, 60]
    assert abs(losses[0] - np.log(V)) < 0.15  # fresh weights know nothing: the loss is that of a uniform guess
    assert losses[-1] < 0.5 * losses[0]
    assert len(series["train_loss"][0]) == 60
    assert (directory / "loss.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "step   60/60 | loss" in printed and "left" in printed and str(directory) in printed


def test_the_same_command_gives_the_same_bits(shards):
    first, second = (run([*TINY, *shards, "-d", "32"]).params_to_host() for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_another_seed_gives_other_weights(shards):
    first, second = (run([*TINY, *shards, "--seed", seed]).params_to_host() for seed in ("1", "2"))
    assert not np.array_equal(first["wte"], second["wte"])


def test_gradient_accumulation_sees_the_same_data(shards):
    """Two micro-batches of 2 rows equal one batch of 4: -a 1 trains on the same first tokens, unshuffled, in each step."""
    whole = run([*TINY, *shards, "-a", "1", "-b", "4", "-d", "32"]).params_to_host()
    parts = run([*TINY, *shards, "-a", "1", "-b", "2", "-d", "32"]).params_to_host()
    # float32 sums in another order, through 4 steps of AdamW, whose steps of 3e-4 magnify where gradients nearly vanish
    assert all(np.abs(whole[name] - parts[name]).max() < 2e-5 for name in whole)


def test_overfit_one_batch_reaches_nearly_zero(shards, tmp_path):
    run([*TINY, *shards, "-a", "1", "-x", "150", "-v", "0", "-l", "0.02", "-o", str(tmp_path)])
    assert read_main_log(tmp_path / "main.log")["train_loss"][1][-1] < 0.05


def test_multiple_choice_accuracy_is_logged(shards, tmp_path, capsys):
    """The questions ask for the continuation of the training text, which the model learns."""
    phrase = np.random.default_rng(5).integers(0, V, 11)  # the shards' phrase
    rng = np.random.default_rng(6)
    questions = []
    for start in range(9):
        text = np.roll(np.tile(phrase, 2), -start)
        endings = [text[4:7] if answer == start % 4 else rng.integers(0, V, 3) for answer in range(4)]
        questions.append(Example(start % 4, text[:4], endings))
    write_examples(tmp_path / "questions.bin", questions)
    flags = ["-h", "1", "--eval-file", str(tmp_path / "questions.bin"), "-x", "60", "-v", "60", "-l", "0.01", "-o", str(tmp_path / "log")]
    run([*TINY, *shards, *flags])
    steps, accuracies = read_main_log(tmp_path / "log" / "main.log")["eval_accuracy"]
    assert list(steps) == [60] and accuracies[0] > 0.8  # 0.25 by chance
    assert "HellaSwag: " in capsys.readouterr().out


def test_questions_change_nothing_in_the_training(shards, tmp_path):
    rng = np.random.default_rng(6)
    write_examples(tmp_path / "questions.bin", [Example(0, rng.integers(0, V, n), [rng.integers(0, V, n)] * 2) for n in (1, 3)])
    flags = [*TINY, *shards, "-v", "1", "--eval-file", str(tmp_path / "questions.bin")]
    with_questions, without = (run([*flags, "-h", asked]).raw("params").tobytes() for asked in "10")
    assert with_questions == without


def test_a_sample_continues_a_learnt_text(tmp_path):
    """A model overfitted to a repeating text generates that text."""
    write_shard(tmp_path / "abc.bin", np.tile([256, *b"abcdefg"], 40))
    flags = ["-i", str(tmp_path / "abc.bin"), "-j", str(tmp_path / "abc.bin")]
    model = run([*TINY, *flags, "-e", "L=1,NH=2,C=16,V=257,T=16", "-t", "16", "-x", "120", "-l", "0.02"])
    encoding = preparation.encoding_for_vocab(257)
    assert trainer.sample(model, encoding, 23, StopRequest()).startswith("abcdefg")


def test_built_in_corpus_needs_nothing_but_python(tmp_path):
    """The README's command, cut down to two steps."""
    command = [sys.executable, "-m", "gpt2_numba.train", "--device", "cpu", "-x", "2", "-m", "1", "-g", "8", "-o", str(tmp_path / "log")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "generating:" in done.stdout and "step    2/2" in done.stdout
    assert (tmp_path / "log" / "loss.png").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batchsize", "4"], ["--batchsize", "--batch-size"]),
        (["-e", "d13"], ["d13", "d12"]),
        (["-e", "L=1,NH=3,C=16"], ["NH", "C=16"]),
        (["-e", "L=1,NH=2,C=24"], ["multiple of 8", "12"]),
        (["-b", "0"], ["-b", "at least 1"]),
        (["-d", "17"], ["-d", "16", "17"]),
        (["-t", "16", "-e", "L=1,NH=2,C=16,V=37,T=8"], ["-t", "8", "16"]),
        (["-i", "nowhere/*.bin"], ["nowhere/*.bin"]),
        (["-e", "L=1,NH=2,C=16,V=20"], ["20", "val.bin"]),
        (["-b", "400"], ["-b", "val.bin"]),
        (["--precision", "bf16"], ["bf16", "GPU"]),
    ],
)  # fmt: skip
def test_mistakes_are_reported_in_one_line(shards, capsys, flags, words):
    assert trainer.main([*TINY, *shards, *flags]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    for word in words:
        assert word in message, message


def test_the_error_names_a_foreign_file(tmp_path, shards, capsys):
    foreign = tmp_path / "picture.bin"
    foreign.write_bytes(b"\x89PNG" + bytes(2000))
    assert trainer.main([*TINY, *shards, "-i", str(foreign)]) == 2
    message = capsys.readouterr().err
    assert "picture.bin" in message and message.count("\n") == 1


@pytest.mark.skipif(real_gpu(), reason="there is a GPU on this machine")
def test_device_gpu_is_refused_without_a_gpu(shards):
    code = "import sys; from gpt2_numba.train import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *TINY, *shards, "--device", "gpu"],
        capture_output=True, text=True, timeout=300, env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "NUMBA_ENABLE_CUDASIM": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "no working one" in done.stderr and "--device cpu" in done.stderr and done.stderr.count("\n") == 1


FAST = Options("gpu", "bf16", recompute=0, kernels=KernelSet("fast", fused=True))


def test_too_little_memory_names_the_batch_that_would_fit():
    config = parse_descriptor("d12")
    needs = {batch: plan_memory(config, batch, 1024, FAST).nbytes for batch in (16, 17)}
    free = (needs[16] + needs[17]) // 2 + (32 << 20)
    with pytest.raises(UserError, match=r"needs .* GiB.* are free.*-b 16\)"):
        check_memory(config, 64, 1024, FAST, free)
    check_memory(config, 16, 1024, FAST, free)


@pytest.mark.parametrize("total, expected", [(None, 17), (1024 * 32, 16), (1024 * 34, 17), (1024 * 23, 1)])
def test_batch_auto_is_the_largest_that_fits_and_divides_the_step(monkeypatch, total, expected):
    config, flags = parse_descriptor("d12"), ["-b", "auto", "-t", "1024", "-r", "0", "--precision", "bf16", "--device", "gpu"]
    settings = with_defaults(parse_settings([*flags, *(["-d", str(total)] if total else [])]), "gpu")
    monkeypatch.setattr(preparation, "real_gpu", lambda: True)
    monkeypatch.setattr(preparation, "free_gpu_bytes", lambda: memory_needed(config, 17, 1024, FAST) + preparation.MEMORY_RESERVE)
    assert preparation.largest_batch_size(settings, config, 1, FAST.kernels) == expected


def test_batch_auto_needs_a_gpu(shards):
    with pytest.raises(UserError, match="-b auto fills a GPU's memory"):
        run([*TINY, *shards, "-b", "auto", "--device", "cpu"])


def test_training_on_the_device_is_reproducible_to_the_bit(shards):
    """Two steps of the whole trainer with the kernels, on a GPU or in the simulator."""
    flags = [*TINY, *shards, "-t", "4", "-b", "1", "-x", "2", "-v", "0", "--device", "gpu", "--precision", "bf16"]
    first, second = (run(flags).params_to_host() for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    fresh = run([*flags, "-x", "1"]).params_to_host()
    assert not np.array_equal(first["qkvw"], fresh["qkvw"])  # the second step has changed something
