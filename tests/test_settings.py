"""The trainer's command line: what it accepts, what it refuses and with which message, and the defaults it promises."""

import dataclasses
import sys
from types import SimpleNamespace

import pytest

from gpt2_numba.config import parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.training.settings import (
    BUILT_IN_CPU_DEFAULTS,
    BUILT_IN_GPU_DEFAULTS,
    SHARD_DEFAULTS,
    Settings,
    parse_settings,
    with_defaults,
)

# Every flag: short form (or None), long form, a value as typed, the field, and the value as parsed.
FLAGS = [
    ("-i", "--train-data", "a_*.bin", "train_data", "a_*.bin"),
    ("-j", "--val-data", "b_*.bin", "val_data", "b_*.bin"),
    (None, "--wait-for-shards", "on", "wait_for_shards", True),
    ("-e", "--model", "L=4,NH=4,C=128", "model", "L=4,NH=4,C=128"),
    ("-o", "--log-dir", "some/log", "log_dir", "some/log"),
    ("-b", "--batch-size", "3", "batch_size", 3),
    ("-t", "--sequence-length", "65", "sequence_length", 65),
    ("-d", "--total-batch-tokens", "390", "total_batch_tokens", 390),
    ("-x", "--max-steps", "-1", "max_steps", -1),
    ("-k", "--schedule", "wsd", "schedule", "wsd"),
    ("-l", "--learning-rate", "6e-4", "learning_rate", 6e-4),
    ("-u", "--warmup-steps", "7", "warmup_steps", 7),
    ("-q", "--final-lr-fraction", "0", "final_lr_fraction", 0.0),
    ("-c", "--weight-decay", "0.1", "weight_decay", 0.1),
    ("-sl", "--skip-loss-z", "5", "skip_loss_z", 5.0),
    ("-sg", "--skip-norm-z", "6.5", "skip_norm_z", 6.5),
    ("-v", "--val-every", "0", "val_every", 0),
    ("-m", "--val-batches", "9", "val_batches", 9),
    ("-s", "--sample-every", "11", "sample_every", 11),
    ("-g", "--sample-tokens", "13", "sample_tokens", 13),
    ("-a", "--overfit-one-batch", "1", "overfit_one_batch", True),
    ("-f", "--tf32", "0", "tf32", False),
    (None, "--matmul-search", "off", "matmul_search", False),
    ("-w", "--master-weights", "0", "master_weights", False),
    ("-r", "--recompute", "2", "recompute", 2),
    ("-ge", "--gelu-fusion", "1", "gelu_fusion", 1),
    ("-h", "--hellaswag", "1", "hellaswag", True),
    (None, "--eval-file", "some.bin", "eval_file", "some.bin"),
    ("-lg", "--gpu-info-every", "5", "gpu_info_every", 5),
    (None, "--stats-every", "50", "stats_every", 50),
    (None, "--track", "wandb", "track", "wandb"),
    ("-n", "--checkpoint-every", "8", "checkpoint_every", 8),
    ("-nk", "--keep-checkpoints", "3", "keep_checkpoints", 3),
    ("-nm", "--major-checkpoint-every", "90", "major_checkpoint_every", 90),
    ("-y", "--resume", "1", "resume", True),
    (None, "--final-checkpoint", "off", "final_checkpoint", False),
    (None, "--restart-data", "on", "restart_data", True),
    (None, "--peak-tflops", "91.5", "peak_tflops", 91.5),
    ("-z", "--zero-stage", "1", "zero_stage", 1),
    ("-pn", "--processes", "2", "processes", 2),
    ("-pr", "--rank", "1", "rank", 1),
    ("-pg", "--gpus-per-node", "4", "gpus_per_node", 4),
    ("-pi", "--init-method", "fs", "init_method", "fs"),
    ("-ps", "--server-address", "10.0.0.1", "server_address", "10.0.0.1"),
    ("-pf", "--shared-path", "some/dir", "shared_path", "some/dir"),
    (None, "--hang-timeout", "30", "hang_timeout", 30),
    (None, "--device", "gpu", "device", "gpu"),
    (None, "--precision", "bf16", "precision", "bf16"),
    (None, "--kernels", "plain,mine.py", "kernels", "plain,mine.py"),
    (None, "--attention", "cudnn", "attention", "cudnn"),
    (None, "--graph", "off", "graph", False),
    (None, "--guards", "on", "guards", True),
    (None, "--frozen-tensors", "warn", "frozen_tensors", "warn"),
    (None, "--seed", "0", "seed", 0),
]
DATA_FLAGS = ["-i", "train.bin", "-j", "val.bin"]


@pytest.fixture(autouse=True)
def wandb(monkeypatch):
    """As if it were installed: --track is a package that is."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(__spec__=object()))


def test_without_flags_nothing_is_set():
    assert all(value is None for value in dataclasses.asdict(parse_settings([])).values())


def test_the_table_above_has_every_setting():
    assert {row[3] for row in FLAGS} == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("short, long, text, name, value", FLAGS, ids=[row[3] for row in FLAGS])
def test_each_flag_sets_its_field_and_no_other(short, long, text, name, value):
    given = [] if name not in ("train_data", "val_data") else DATA_FLAGS
    expected = dataclasses.replace(parse_settings(given), **{name: value})
    for flag in filter(None, [short, long]):
        for arguments in ([flag, text], [f"{flag}={text}"]):
            settings = parse_settings(given + arguments)
            assert settings == expected
            assert type(getattr(settings, name)) is type(value)


def test_the_batch_size_may_be_auto():
    assert parse_settings(["-b", "auto"]).batch_size == "auto"


def test_the_last_value_of_a_repeated_flag_counts():
    assert parse_settings(["-b", "3", "--batch-size", "5"]).batch_size == 5


@pytest.mark.parametrize(
    "argument, nearest",
    [
        ("--batch_size", "--batch-size"),
        ("--Batch-Size=3", "--batch-size"),
        ("--learning-rat", "--learning-rate"),
        ("-B", "-b"),
        ("--sl", "--seed"),
        ("-batch-size", "--batch-size"),
        ("--hepl", "--help"),
        ("-slx", "-sl"),
    ],
)
def test_the_error_for_an_unknown_flag_names_the_nearest_known_one(argument, nearest):
    with pytest.raises(UserError, match=rf"unknown flag {argument.split('=')[0]}: did you mean {nearest}\?"):
        parse_settings([argument, "3"])


@pytest.mark.parametrize("arguments", [["-b4"], ["-step", "3"], ["--batch", "3"], ["--learning", "3"]])
def test_abbreviated_flags_are_refused(arguments):
    with pytest.raises(UserError, match="did you mean"):
        parse_settings(arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["-b", "four"], "-b must be an integer of at least 1, or auto, got 'four'"),
        (["-b", "-4"], "-b must be an integer of at least 1, or auto, got '-4'"),
        (["--batch-size=0"], "--batch-size must be an integer of at least 1, or auto, got '0'"),
        (["-t", "1.5"], "-t must be an integer"),
        (["-x", "-2"], "-x must be an integer of at least 1, or -1, got '-2'"),
        (["-x", "0"], "got '0'"),
        (["-r", "3"], "-r must be an integer from 0 to 2, got '3'"),
        (["--seed", "4294967296"], "an integer from 0 to 4294967295"),
        (["-l", "-1e-4"], "-l must be a number of at least 0, got '-1e-4'"),
        (["-l", "nan"], "got 'nan'"),
        (["-l", "inf"], "got 'inf'"),
        (["-q", "1.1"], "-q must be a number from 0 to 1, got '1.1'"),
        (["-k", "cos"], "-k must be one of cosine, linear, constant, wsd, got 'cos'"),
        (["--device", "cuda"], "--device must be one of auto, cpu, gpu, got 'cuda'"),
        (["--attention", "flash"], "--attention must be one of auto, numba, cudnn, got 'flash'"),
        (["-a", "true"], r"-a must be 0 \(off\) or 1 \(on\), got 'true'"),
        (["-e", ""], "-e must be a non-empty string"),
        (["-b"], "-b needs a value, got nothing"),
        (["-o", "-b", "4"], "-o needs a value, got the flag -b"),
        (["4"], "got '4' where a flag belongs"),
        (["-b", "4", "5"], "got '5' where a flag belongs"),
        (["-h"], "-h needs a value"),
        (["-i", "train.bin"], "got only -i: add -j"),
        (["-j", "val.bin"], "got only -j: add -i"),
    ],
)
def test_a_mistake_is_reported_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_settings(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["-x", "-u", "-b", "-t", "-d", "--hang-timeout", "-l", "--seed", "-e", "-o"])
@pytest.mark.parametrize("digits", [11, 400, 5000])
def test_a_number_without_end_is_a_mistake_with_a_short_message(flag, digits):
    if flag in ("-l", "-o") and digits == 11:
        return
    with pytest.raises(UserError) as caught:
        settings = parse_settings([flag, "9" * digits])
        parse_descriptor(settings.model)
    assert len(str(caught.value)) < 400


def test_the_largest_integer_is_that_of_llmc():
    assert parse_settings(["-x", "2147483647"]).max_steps == 2**31 - 1
    with pytest.raises(UserError, match="-x must be an integer of at most 2147483647, got '2147483648'"):
        parse_settings(["-x", "2147483648"])


@pytest.mark.parametrize("pattern", ["L={},NH=2,C=32", "L=2,NH=2,C={}", "d{}", "gpt2:d{}", "gpt3:c{}"])
@pytest.mark.parametrize("digits", [19, 400, 5000])
def test_a_model_of_a_size_without_end_is_a_mistake(pattern, digits):
    with pytest.raises(UserError, match="model '") as caught:
        parse_descriptor(pattern.format("9" * digits))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "flag, text, path",
    [
        ("-o", "~/log", "/home/me/log"),
        ("-i", "~/data/*.bin", "/home/me/data/*.bin"),
        ("-e", "~/model.bin", "/home/me/model.bin"),
        ("--kernels", "~/mine.py", "/home/me/mine.py"),
        ("-pf", "~", "/home/me"),
        ("--eval-file", "a~b", "a~b"),
    ],
)
def test_a_tilde_is_the_home_directory(monkeypatch, flag, text, path):
    """A shell replaces it in `-o ~/log`, but not in `-o=~/log` and not in a quoted pattern."""
    monkeypatch.setenv("HOME", "/home/me")
    settings = parse_settings([f"{flag}={text}", *(["-j", "v.bin"] if flag == "-i" else [])])
    assert path in dataclasses.asdict(settings).values()


@pytest.mark.parametrize("flag", ["-i", "--train-data", "-j", "--eval-file", "-o", "-pf"])
def test_a_name_that_no_file_system_accepts_is_a_mistake(flag):
    with pytest.raises(UserError, match=f"{flag} must be a path whose names have at most 255 bytes"):
        parse_settings([flag, "a/" + 128 * "ü"])


@pytest.mark.parametrize("flag", ["-i", "--val-data"])
@pytest.mark.parametrize("equals", [False, True])
def test_a_pattern_that_the_shell_has_expanded_is_to_be_quoted(flag, equals):
    first = [f"{flag}=d_1.bin"] if equals else [flag, "d_1.bin"]
    with pytest.raises(UserError, match=f"got 'd_2.bin' where a flag belongs: quote the pattern after {flag}"):
        parse_settings([*first, "d_2.bin", "d_3.bin", "-b", "4"])


def test_a_value_too_many_elsewhere_is_not_called_a_pattern():
    with pytest.raises(UserError, match="got '5' where a flag belongs: see --help"):
        parse_settings(["-i", "d.bin", "-b", "4", "5"])


def test_defaults_depend_on_the_data_and_the_device():
    assert with_defaults(parse_settings([]), "cpu") == BUILT_IN_CPU_DEFAULTS
    assert with_defaults(parse_settings([]), "gpu") == BUILT_IN_GPU_DEFAULTS
    on_shards = dataclasses.replace(SHARD_DEFAULTS, train_data="train.bin", val_data="val.bin")
    assert with_defaults(parse_settings(DATA_FLAGS), "cpu") == on_shards
    assert with_defaults(parse_settings(DATA_FLAGS), "gpu") == on_shards


def test_given_values_override_the_defaults_even_if_they_are_zero():
    filled = with_defaults(parse_settings(["-b", "3", "-f", "0", "-c", "0"]), "cpu")
    assert filled == dataclasses.replace(BUILT_IN_CPU_DEFAULTS, batch_size=3, tf32=False, weight_decay=0.0)


@pytest.mark.parametrize("defaults", [SHARD_DEFAULTS, BUILT_IN_CPU_DEFAULTS, BUILT_IN_GPU_DEFAULTS])
def test_only_settings_with_a_meaning_for_none_lack_a_default(defaults):
    unset = {field.name for field in dataclasses.fields(Settings) if getattr(defaults, field.name) is None}
    assert unset - {"log_dir"} == {
        "train_data",
        "val_data",
        "gelu_fusion",
        "total_batch_tokens",
        "peak_tflops",
        "processes",
        "rank",
        "gpus_per_node",
        "server_address",
        "shared_path",
        "track",
    }


def test_shard_runs_keep_llmc_defaults():
    s = SHARD_DEFAULTS
    assert (s.batch_size, s.sequence_length, s.max_steps, s.schedule, s.learning_rate) == (4, 1024, -1, "cosine", 3e-4)
    assert (s.warmup_steps, s.final_lr_fraction, s.weight_decay, s.skip_loss_z, s.skip_norm_z) == (0, 1.0, 0, 0, 0)
    assert (s.val_every, s.val_batches, s.sample_every, s.sample_tokens) == (20, 20, 20, 64)
    assert (s.overfit_one_batch, s.tf32, s.master_weights, s.recompute, s.seed) == (False, True, True, 1, 42)


def test_help_lists_every_flag_its_defaults_and_the_descriptors(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # wide enough that no searched text is broken across lines
    with pytest.raises(SystemExit) as caught:
        parse_settings(["-b", "3", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for short, long, *_ in FLAGS:
        assert long in text
        assert short is None or f"{short}" in text.split(long)[0]
    cpu, gpu = BUILT_IN_CPU_DEFAULTS.batch_size, BUILT_IN_GPU_DEFAULTS.batch_size
    assert f"[default 4; built-in corpus: {cpu} on a CPU, {gpu} on a GPU]" in text
    assert "[default 1024;" in text and "[default B * T * processes]" in text and "None" not in text
    for descriptor in ("d6 d12 d24 d36 d48 d60 d72 d84", "gpt2:dX", "gpt3:cX", "12288", "L=4,NH=4,C=128,T=128,V=257"):
        assert descriptor in text
