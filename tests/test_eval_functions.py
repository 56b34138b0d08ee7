"""dev.eval.functions: which functions a model is asked to complete, where a completion ends, and what counts as valid Python."""

import json

import numpy as np
import pytest

from dev.eval import functions
from dev.eval.functions import Function, body_of, functions_in, functions_of_shards, is_valid
from gpt2_numba.config import GPT2Config, count_parameters
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.data.tokenizers import byte_encoding
from gpt2_numba.errors import UserError
from gpt2_numba.training.model_file import write_model_file

SOURCE = '''import math


def area(r):
    """Area of a circle."""
    square = r * r
    return math.pi * square


def nothing_to_write(r):
    """One line is too few."""
    return r


def without_docstring(r):
    r += 1
    return r


class Circle:
    def method(self):
        """Methods do not stand by themselves."""
        a = 1
        return a
'''
PROMPT = 'def area(r):\n    """Area of a circle."""'
REST = "\n    square = r * r\n    return math.pi * square"


def shard(path, *documents):
    encoding = byte_encoding()
    tokens = [token for text in documents for token in [encoding.eot_token, *text.encode()]]
    write_shard(path, np.array(tokens))
    return str(path)


def test_functions_stand_by_themselves_with_a_docstring_and_some_lines():
    assert list(functions_in(SOURCE)) == [Function(PROMPT, REST)]
    assert list(functions_in("def broken(:\n")) == []
    assert list(functions_in("\0")) == []


def test_what_an_author_has_written_is_valid():
    assert is_valid(PROMPT + body_of(REST + "\n\n\nclass Next:\n"))


@pytest.mark.parametrize(
    "text, body",
    [
        ("\n    return r\n\n\ndef other(x):\n    return x\n", "\n    return r"),
        ("\n    a = 1\n\n    return a\nprint(1)\n", "\n    a = 1\n\n    return a"),
        ("\n    a = 1\n    return a.lo", "\n    a = 1"),  # cut in the middle of a line
        ("\n@decorator", ""),
        ("", ""),
    ],
)
def test_a_completion_ends_where_the_function_does(text, body):
    assert body_of(text) == body


@pytest.mark.parametrize("rest", ["", "\n    return (", "\n    x = = 1", "\n      a = 1\n    b = 2", "\nreturn 1"])
def test_without_a_statement_or_with_a_wrong_one_it_is_not_valid(rest):
    assert not is_valid(PROMPT + rest)


def test_functions_are_read_from_shards_one_for_each_document_and_once(tmp_path):
    other = SOURCE.replace("area", "surface")
    pattern = shard(tmp_path / "x_val_000000.bin", SOURCE, other, SOURCE, "no function")
    found = functions_of_shards(pattern, byte_encoding(), 10)
    assert [function.prompt for function in found] == [PROMPT, PROMPT.replace("area", "surface")]
    assert functions_of_shards(pattern, byte_encoding(), 1) == found[:1]
    with pytest.raises(UserError, match="no function with a docstring"):
        functions_of_shards(shard(tmp_path / "y_val_000000.bin", "x = 1\n"), byte_encoding(), 10)


def test_a_model_is_judged_by_what_it_writes(tmp_path, monkeypatch, capsys):
    """A real model writes noise; one that writes as the author did is right every time."""
    pattern = shard(tmp_path / "x_val_000000.bin", SOURCE)
    config = GPT2Config(L=1, NH=1, C=8, max_T=96, V=257)
    weights = np.random.default_rng(1).normal(0, 0.1, count_parameters(config)).astype(np.float32)
    write_model_file(tmp_path / "model.bin", config, weights)
    command = [str(tmp_path / "model.bin"), "--shards", pattern, "--samples", "2", "--tokens", "16", "--json", str(tmp_path / "out.json")]
    assert functions.main(command) == 0
    assert "0.0% valid" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert (result["valid"], result["count"]) == (0, 2)
    assert result["completions"][0]["text"].startswith(PROMPT)

    monkeypatch.setattr(functions, "complete", lambda decoder, *_: [REST + "\n"] * decoder.B)
    assert functions.main(command) == 0
    assert "100.0% valid" in capsys.readouterr().out
