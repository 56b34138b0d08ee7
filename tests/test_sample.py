"""python -m gpt2_numba.sample: which models it reads, how it chooses tokens, what it prints, and what it says of mistakes."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2_numba import sample as program
from gpt2_numba.config import GPT2Config
from gpt2_numba.data.tokenizers import byte_encoding
from gpt2_numba.export import export
from gpt2_numba.gpu.backend import bfloat16_bits, bfloat16_supported
from gpt2_numba.sample import TextStream, coin_sequences, main
from gpt2_numba.training.model_file import write_model_file
from gpt2_numba.training.sampler import Xorshift64Star, _largest, choose_token, sample_from_logits
from tests.huggingface_folders import flat_parameters, lively_weights

ROOT = Path(__file__).resolve().parents[1]
CONFIG = GPT2Config(L=1, NH=2, C=16, max_T=24, V=257)
WITHOUT_TOKENIZER = GPT2Config(L=1, NH=2, C=16, max_T=24, V=40)

# ------------------------------------------------------------------------------------------------------ choosing a token

# Probabilities 1/8, 1/2, 1/16, 1/4, 1/16.
LOGITS = np.log(np.array([2, 8, 1, 4, 1], np.float32))


def chosen(**settings):
    """Token -> share of 1,024 evenly spaced coins that choose it."""
    found = [choose_token(LOGITS, (i + 0.5) / 1024, **settings) for i in range(1024)]
    return {token: round(found.count(token) / 1024, 2) for token in sorted(set(found))}


def test_without_settings_it_is_the_trainers():
    logits, coins = np.random.default_rng(1).standard_normal(1000).astype(np.float32), Xorshift64Star(5)
    for coin in (coins.next_coin() for _ in range(100)):
        assert choose_token(logits, coin) == sample_from_logits(logits, coin)


@pytest.mark.parametrize("settings, shares", [
    (dict(top_k=1), {1: 1.0}),
    (dict(top_k=2), {1: 0.67, 3: 0.33}),
    (dict(top_k=4), {0: 0.13, 1: 0.53, 2: 0.07, 3: 0.27}),  # tokens 2 and 4 are equally likely: the first remains
    (dict(top_k=9), {0: 0.12, 1: 0.5, 2: 0.06, 3: 0.25, 4: 0.06}),
    (dict(top_p=0.49), {1: 1.0}),
    (dict(top_p=0.7), {1: 0.67, 3: 0.33}),  # a half is not enough, three quarters are
    (dict(top_p=0.76), {0: 0.14, 1: 0.57, 3: 0.29}),
    (dict(top_p=0.92), {0: 0.13, 1: 0.53, 2: 0.07, 3: 0.27}),
    (dict(top_k=3, top_p=0.6), {1: 0.67, 3: 0.33}),  # of 7/8, a half is 0.57
    (dict(temperature=0), {1: 1.0}),
    (dict(temperature=0.5), {0: 0.05, 1: 0.74, 2: 0.01, 3: 0.19, 4: 0.01}),  # 4, 64, 1, 16, 1 of 86
    (dict(temperature=0.5, top_p=0.8), {1: 0.8, 3: 0.2}),  # 64/86 is not enough; the temperature comes first
], ids=str)  # fmt: skip
def test_shares_of_the_tokens(settings, shares):
    assert chosen(**settings) == shares


@pytest.mark.parametrize("V, k", [(37, 9), (1500, 1), (3000, 50), (50257, 50), (50257, 6000)])
def test_the_largest_are_the_first_of_a_stable_sort(V, k):
    """Logits of few different values, as in bfloat16, so that many are equal."""
    values = np.round(np.random.default_rng(V + k).standard_normal(V) * 40).astype(np.float32)
    np.testing.assert_array_equal(_largest(values, k), np.sort(np.argsort(-values, kind="stable")[:k]))


def test_of_many_tokens_those_of_the_nucleus_are_the_fewest():
    """Against the definition, with whole sums. Also that few of many are sorted."""
    random = np.random.default_rng(3)
    for V, top_p in ((50257, 0.9), (50257, 0.1), (7, 0.999), (1, 0.5)):
        logits = random.standard_normal(V).astype(np.float32) * 3
        weights = np.exp(logits.astype(np.float64))
        order = np.argsort(-weights)
        count = 1 + np.argmax(np.cumsum(weights[order]) >= top_p * weights.sum())
        found = {choose_token(logits, coin, top_p=top_p) for coin in np.linspace(0, 1 - 2**-24, 300)}
        assert found <= set(order[:count].tolist()) and len(found) >= min(count, 20)


def test_logits_that_are_not_finite_are_reported():
    for settings in (dict(temperature=0), dict(top_k=2), dict(top_p=0.5)):
        with pytest.raises(program.UserError, match="got 1 of 3 that are not"):
            choose_token(np.array([1, math.nan, 2], np.float32), 0.5, **settings)


def test_a_text_has_its_own_coins():
    def coins(count):
        return [[sequence.next_coin() for _ in range(4)] for sequence in coin_sequences(1337, count)]

    assert coins(1) == coins(5)[:1] and coins(3) == coins(5)[:3]
    assert len({tuple(sequence) for sequence in coins(5)}) == 5
    trainer = Xorshift64Star(1337)
    assert coins(1) == [[trainer.next_coin() for _ in range(4)]]


# --------------------------------------------------------------------------------------------------------------- text


def test_only_whole_characters_are_printed():
    stream = TextStream(byte_encoding())
    assert [stream.text(byte) for byte in "a€é".encode()] == ["a", "", "", "€", "", "é"]
    assert stream.rest() == ""
    assert [stream.text(byte) for byte in b"\xe2\x82x"] == ["", "", "\ufffdx"]  # not a character, after all
    assert stream.text(0xE2) == "" and stream.rest() == "\ufffd"


# ---------------------------------------------------------------------------------------------------------- the program


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model files, a Hugging Face folder, and a log directory with a complete checkpoint, an unfinished one, and one that is damaged."""
    directory = tmp_path_factory.mktemp("models")
    flat = flat_parameters(lively_weights(CONFIG))
    write_model_file(directory / "fp32.bin", CONFIG, flat)
    write_model_file(directory / "bf16.bin", CONFIG, bfloat16_bits(flat))
    write_model_file(directory / "v40.bin", WITHOUT_TOKENIZER, flat_parameters(lively_weights(WITHOUT_TOKENIZER)))
    export(CONFIG, flat, directory / "folder", encoding=byte_encoding())
    log = directory / "log"
    log.mkdir()
    write_model_file(log / "model_00000010.bin", CONFIG, flat)
    (log / "DONE_00000010").touch()  # as llm.c leaves it
    (log / "model_00000020.bin").write_bytes((log / "model_00000010.bin").read_bytes()[:-4])
    (log / "DONE_00000020").touch()
    write_model_file(log / "model_00000030.bin", CONFIG, flat * 2)
    return directory


def written(models, capsys, name, *flags):
    assert main([str(models / name), *flags]) == 0
    return capsys.readouterr().out


FEW = "--prompt", "ab", "--tokens", "12", "--device", "cpu"


@pytest.mark.parametrize("name", ["log", "log/DONE_00000010", "log/model_00000010.bin", "folder"])
def test_the_same_model_from_everywhere(models, capsys, name):
    text = written(models, capsys, "fp32.bin", *FEW)
    assert text.startswith("ab") and len(text) > 5
    assert written(models, capsys, name, *FEW) == text


@pytest.mark.skipif(not bfloat16_supported(), reason="no GPU with bfloat16, and the simulator is turned off")
def test_on_the_device(models, capsys):
    """fp32: the CPU's text. bf16 is the precision of its file there; on a CPU such a file is read as well."""
    flags = "--prompt", "ab", "--tokens", "2", "--top-k", "5"
    on_cpu = written(models, capsys, "fp32.bin", *flags, "--device", "cpu")
    assert written(models, capsys, "fp32.bin", *flags, "--device", "gpu") == on_cpu
    assert main([str(models / "bf16.bin"), *flags, "--device", "gpu"]) == 0
    assert ", bf16, kernels fast" in capsys.readouterr().err
    assert main([str(models / "bf16.bin"), *flags, "--device", "cpu"]) == 0
    assert ", fp32, kernels reference" in capsys.readouterr().err


def test_several_texts(models, capsys):
    """The first is the one that is written alone; another seed gives others, the same seed the same."""
    alone = written(models, capsys, "fp32.bin", *FEW)
    three = written(models, capsys, "fp32.bin", *FEW, "--samples", "3")
    parts = [part.split("\n", 1)[1] for part in three.split("--- ")[1:]]
    assert [part[:2] for part in parts] == ["ab"] * 3 and len(set(parts)) == 3
    assert parts[0] == alone
    assert written(models, capsys, "fp32.bin", *FEW, "--samples", "3") == three
    assert written(models, capsys, "fp32.bin", *FEW, "--seed", "2") != alone


def test_it_ends_at_end_of_text(models, capsys, monkeypatch):
    script = iter([65, 66, CONFIG.V - 1, 67])
    monkeypatch.setattr(program, "choose_token", lambda *_, **__: next(script))
    assert written(models, capsys, "fp32.bin", *FEW) == "abAB\n"


def test_a_text_longer_than_the_context(models, capsys):
    text = written(models, capsys, "fp32.bin", "--prompt", "x" * 100, "--tokens", "60", "--device", "cpu")
    assert text.startswith("x" * 100) and len(text) > 120


def test_each_line_of_a_pipe_is_a_prompt(models):
    command = [
        sys.executable,
        "-m",
        "gpt2_numba.sample",
        str(models / "fp32.bin"),
        "--tokens",
        "3",
        "--temperature",
        "0",
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        command, input=b"ab\n\nab\n\xff\n", capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode(errors="replace").split("\n")
    one = subprocess.run([*command, "--prompt", "ab"], capture_output=True, cwd=ROOT).stdout
    assert lines[0] == lines[2] == one.decode(errors="replace").removeprefix("ab").rstrip("\n")
    assert len(lines) == 5 and lines[4] == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_conversation(models, capsys, monkeypatch):
    """In a terminal: Ctrl-C ends an answer, a mistake is reported and the next line is read, Ctrl-D ends the program."""
    lines = iter(["1 2", "x", "1 2"])
    asked = []

    def answer(prompt):
        asked.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    choose, calls = program.choose_token, []

    def interrupted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return choose(*arguments, **settings)

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(program, "choose_token", interrupted)
    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main([str(models / "v40.bin"), "--tokens", "4", "--temperature", "0", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert asked == [program.PROMPT] * 4
    first, second, *rest = out.split("\n")
    assert second.startswith(first) and (len(first.split()), len(second.split())) == (2, 4)
    assert "Ctrl-D ends" in err and "error: a model without a tokenizer takes prompts of token numbers from 0 to 39" in err


@pytest.mark.parametrize(("flags", "words"), [
    (["nowhere"], "got 'nowhere', and there is nothing of that name"),
    (["{models}/nowhere.bin"], "nowhere.bin"),
    (["{models}"], "must have a complete checkpoint"),
    (["{models}/v40.bin", "--prompt", "hello"], "takes prompts of token numbers from 0 to 39, with spaces between, got 'hello'"),
    (["{models}/v40.bin", "--prompt", "1 40"], "from 0 to 39"),
    (["{models}/v40.bin", "--tokenizer", "bytes"], "at most the model's 40 tokens, and bytes has 257: use --tokenizer none"),
    (["{models}/fp32.bin", "--context", "25"], "at most the model's longest context, 24, got 25"),
    (["{models}/fp32.bin", "--temperature", "-1"], "--temperature: invalid number (from 0 on) value: '-1'"),
    (["{models}/fp32.bin", "--temperature", "nan"], "value: 'nan'"),
    (["{models}/fp32.bin", "--top-p", "0"], "--top-p: invalid number (above 0, at most 1) value: '0'"),
    (["{models}/fp32.bin", "--top-k", "-1"], "--top-k"), (["{models}/fp32.bin", "--tokens", "0"], "--tokens"),
    (["{models}/fp32.bin", "--seed", "0"], "--seed"), (["{models}/fp32.bin", "--samples", "x"], "--samples"),
    (["{models}/fp32.bin", "--device", "cpu", "--precision", "bf16", "--prompt", ""], "bf16 needs a GPU"),
])  # fmt: skip
def test_mistakes_are_one_line(models, capsys, flags, words):
    assert main([flag.format(models=models) for flag in flags]) == 2
    out, err = capsys.readouterr()
    last = err.rstrip("\n").split("\n")[-1]
    assert last.startswith("error: ") and words in last and out == ""


def test_a_damaged_checkpoint_is_told(models, capsys):
    main([str(models / "log"), *FEW])
    assert "warning: the checkpoint of step 20 cannot be used" in capsys.readouterr().err


def test_the_folder_of_the_tests_is_one(models):
    assert json.loads((models / "folder" / "config.json").read_text())["n_layer"] == 1
