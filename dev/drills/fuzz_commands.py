"""The command lines that the fuzz drill tries: each with flags of its own, right and wrong values, and arbitrary text.

A command may end with code 0, 1 or 2, or with SystemExit after --help; anything else it raises is a fault.
"""

import contextlib
import dataclasses
import os
from unittest import mock

from hypothesis import strategies as st

from dev.drills.questions import questions_as_json_lines
from dev.drills.report import Lost
from gpt2_numba import doctor, plan, plot
from gpt2_numba.config import count_parameters, parse_descriptor
from gpt2_numba.data import __main__ as data
from gpt2_numba.data import tokenizers
from gpt2_numba.training.settings import Settings, parse_settings, with_defaults

ODD_WORDS = [
    "", " ", "-", "--", "=", "-1", "0", "1", "1.5", "1e-4", "1e999", "nan", "inf", "-inf", "9" * 400, "9" * 5000, "٣", "½", "1_0", "+1", "0x10",
    "a\nb", "\t", "on", "off", "auto", "cpu", "d12", "gpt3:c768", "d" + "9" * 5000, "L=1,NH=2,C=16", "L=" + "9" * 5000, "~", "~/x", ".", "./.",
    "x" * 300, "/dev/null", "/dev/full", "a/b", "[", "*", "ü", "\udcff", "😀", "model.bin", "book.txt", "questions.jsonl", "$\\foo$", "%s", "{0}", "@x",
]  # fmt: skip
PLAN_FLAGS = ["--gpu", "--gpus", "--tokens", "--data-tokens", "--price", "--network", "--disk"]
# Without what would name a file elsewhere.
TEXT = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), max_size=12).filter(lambda text: ".." not in text)
WORD = st.one_of(st.sampled_from(ODD_WORDS), TEXT)


def command_lines(flags):
    """Lists of words: flags with values in both forms, and words by themselves."""
    flag = st.sampled_from(flags)
    part = st.one_of(
        st.tuples(flag, WORD).map(list), st.tuples(flag, WORD).map(lambda pair: ["=".join(pair)]), WORD.map(lambda word: [word]),
        flag.map(lambda one: [one]),
    )  # fmt: skip
    return st.lists(part, max_size=6).map(lambda parts: [word for words in parts for word in words])


def _descriptors():
    key = st.sampled_from(("L", "NH", "C", "T", "V", "l", "X", "", "gpt2:d", "gpt3:c", "d", "c"))
    size = st.one_of(st.integers(-1, 10**30).map(str), st.sampled_from(ODD_WORDS))
    pair = st.tuples(key, st.sampled_from(("=", "", ":", " = ")), size).map("".join)
    return st.one_of(st.lists(pair, max_size=6).map(",".join), WORD)


def targets():
    """(name, strategy of a command line, use)."""
    train_flags = [
        flag for field in dataclasses.fields(Settings) for flag in (field.metadata["short"], "--" + field.name.replace("_", "-")) if flag
    ]
    return [
        ("train's flags", command_lines([*train_flags, "--help"]), lambda _directory, argv: _settings(argv)),
        ("model descriptors", _descriptors(), lambda _directory, text: count_parameters(parse_descriptor(text))),
        ("plot's arguments", command_lines(["--out", "--help"]), _plot),
        ("plan's arguments", command_lines([*train_flags, *PLAN_FLAGS, "--help"]), _plan),
        ("plan's numbers", _plans(), _plan),
        ("doctor's arguments", command_lines(["--check", "--warm", "--help"]), _doctor),
        ("data's arguments", command_lines(["--tokenizer", "--split", "--field", "--replace-invalid", "--val-fraction", "--val-tokens", "--tokens",
                                            "--shard-size", "--out", "--name", "--help"]), _tokenize),
        ("hellaswag's arguments", command_lines(["--out", "--limit", "--longest", "--name", "--tokenizer", "--help"]), _hellaswag),
    ]  # fmt: skip


def _plans():
    """A plan's command lines that can be read, with sizes of all magnitudes."""
    number = st.one_of(st.integers(1, 4096), st.integers(0, 12).flatmap(lambda digits: st.integers(10**digits, 10 ** (digits + 1)))).map(
        str
    )
    head_size = st.integers(1, 10**6).map(lambda n: 8 * n)
    sizes = st.tuples(st.integers(1, 10_000), st.integers(1, 10**5), head_size, number, number).map(
        lambda sizes: "L={},NH={},C={},T={},V={}".format(*sizes[:2], sizes[1] * sizes[2], *sizes[3:])
    )
    model = st.one_of(st.sampled_from(("d6", "d12", "d84", "gpt3:c12288", "L=10000,NH=1,C=8", "L=9999,NH=4,C=128,T=1")), sizes)
    numbers = {
        flag: number
        for flag in ("-b", "-t", "-d", "-x", "-u", "-n", "-nk", "-v", "-m", "--gpus", "--tokens", "--data-tokens", "--price", "--disk")
    }
    choices = {
        "-z": ("0", "1", "2"),
        "-r": ("0", "1", "2"),
        "--gpu": ("h100", "4090", "a100"),
        "--device": ("cpu", "gpu"),
        "--precision": ("fp32", "bf16"),
        "-b": ("auto",),
    }
    pairs = st.one_of(
        st.sampled_from(sorted(numbers)).flatmap(lambda flag: st.tuples(st.just(flag), numbers[flag])),
        st.sampled_from(sorted(choices)).flatmap(lambda flag: st.tuples(st.just(flag), st.sampled_from(choices[flag]))),
    )
    flags = st.lists(pairs, max_size=5, unique_by=lambda pair: pair[0])
    return st.tuples(model, flags).map(lambda drawn: ["-e", drawn[0], *(word for pair in drawn[1] for word in pair)])


def _plan(directory, argv):
    with working_directory(directory):
        _ends_well(plan.main, argv)


def _settings(argv):
    with contextlib.suppress(SystemExit):
        with_defaults(parse_settings(argv), "cpu")


def _ends_well(main, argv):
    """Call a command's main. Raises Lost if it ends with another code than 0, 1 or 2."""
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    if code not in (0, 1, 2, None):
        raise Lost(f"exit code {code}")


@contextlib.contextmanager
def working_directory(directory):
    """With `directory` as the working directory and as the user's home."""
    before = os.getcwd()
    os.chdir(directory)
    try:
        with mock.patch.dict(os.environ, HOME=str(directory)):
            yield
    finally:
        os.chdir(before)


def _plot(directory, argv):
    """Where the log of a run is the working directory."""
    (directory / "main.log").write_text("s:0 trl:5.0 lr:0.001 norm:1.0\n")
    with working_directory(directory), mock.patch("gpt2_numba.plot.draw", return_value=[]):
        _ends_well(plot.main, argv)


def _doctor(_directory, argv):
    """Without its examinations."""
    with mock.patch.multiple("gpt2_numba.doctor", examine=lambda: True, warm=lambda: True, simulate_without_gpu=lambda: None), \
            mock.patch("gpt2_numba.layer_checks.check_all_layers", return_value=True):  # fmt: skip
        _ends_well(doctor.main, argv)


def _tokenize(directory, argv):
    """With a text, and bytes instead of GPT-2's tokenizer, which may have to be downloaded."""
    (directory / "book.txt").write_text("To be, or not to be\n\n" * 20)
    _with_bytes(directory, data.main, argv)


def _hellaswag(directory, argv):
    (directory / "questions.jsonl").write_bytes(questions_as_json_lines())
    _with_bytes(directory, data.main, ["hellaswag", "--questions", "questions.jsonl", *argv])


def _with_bytes(directory, main, argv):
    byte_encoding = tokenizers.ENCODINGS["bytes"]
    with working_directory(directory), mock.patch.dict(tokenizers.ENCODINGS, gpt2=byte_encoding):
        _ends_well(main, argv)
