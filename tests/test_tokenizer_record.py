"""The tokenizer recorded beside shards, and what the trainer makes of it: the vocabulary of the model, a refusal, samples that are text."""

import numpy as np
import pytest

from gpt2_numba.config import GPT2Config
from gpt2_numba.data.token_shards import write_shard
from gpt2_numba.data.tokenizer_record import check_vocabulary_size, record_tokenizer, recorded_tokenizer, tokenizer_of_shards
from gpt2_numba.errors import UserError
from gpt2_numba.train import main
from gpt2_numba.training.model_file import write_model_file
from gpt2_numba.training.preparation import choose_model
from gpt2_numba.training.settings import parse_settings, with_defaults


@pytest.fixture
def shards(tmp_path):
    """Flags of a training on byte tokens, with their record."""
    for split in ("train", "val"):
        write_shard(tmp_path / f"x_{split}_000000.bin", np.tile([256, *b"To be, or not to be. "], 20))
    record_tokenizer(tmp_path / "x", "bytes", documents=20)
    return ["-i", f"{tmp_path}/x_train_*.bin", "-j", f"{tmp_path}/x_val_*.bin"]


def chosen(*flags):
    """(GPT2Config, tokenizer) that the trainer chooses for a fresh model."""
    _, config, encoding = choose_model(with_defaults(parse_settings([*flags]), "cpu"), None)
    return config, encoding


@pytest.mark.parametrize("name", ["x_train_000000.bin", "x_val_000123.bin", "x_manifest.json"])
def test_a_record_is_found_from_its_shards(tmp_path, name):
    assert recorded_tokenizer(tmp_path / name) is None
    record_tokenizer(tmp_path / "x", "gpt2")
    assert recorded_tokenizer(tmp_path / name) == "gpt2"
    assert recorded_tokenizer(tmp_path / "y_train_000000.bin") is None and recorded_tokenizer(tmp_path / "x.bin") is None


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"tokenizer": "words"}', '{"tokenizer": ["gpt2"]}', "[" * 10_000, "\xff"])
def test_a_record_that_cannot_be_used_is_told(tmp_path, content):
    (tmp_path / "x_tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="x_tokenizer.json: the record") as raised:
        recorded_tokenizer(tmp_path / "x_train_000000.bin")
    assert "\n" not in str(raised.value)


def test_shards_of_two_tokenizers(tmp_path):
    record_tokenizer(tmp_path / "x", "gpt2")
    record_tokenizer(tmp_path / "y", "bytes")
    x, y, z = [tmp_path / f"{name}_train_000000.bin" for name in "xyz"]
    assert tokenizer_of_shards([z]) is None and tokenizer_of_shards([x, z]) == "gpt2"
    with pytest.raises(UserError, match="the same tokenizer: gpt2 by .*x_tokenizer.json, bytes by "):
        tokenizer_of_shards([x, y])


@pytest.mark.parametrize(("vocab_size", "tokenizer", "fits"), [
    (257, "bytes", True), (384, "bytes", True), (256, "bytes", False), (385, "bytes", False), (50257, "bytes", False),
    (50257, "gpt2", True), (50304, "gpt2", True), (50256, "gpt2", False), (50305, "gpt2", False), (257, "gpt2", False), (7, None, True),
])  # fmt: skip
def test_which_vocabularies_fit(vocab_size, tokenizer, fits):
    if fits:
        check_vocabulary_size(vocab_size, tokenizer, is_fresh=True)
    else:
        with pytest.raises(UserError, match=f"{tokenizer}, V=.*, got V={vocab_size}: write V="):
            check_vocabulary_size(vocab_size, tokenizer, is_fresh=True)
        with pytest.raises(UserError, match="start from another model"):
            check_vocabulary_size(vocab_size, tokenizer, is_fresh=False)


@pytest.mark.parametrize(
    ("model", "V"), [("d12", 257), ("gpt3:c384", 257), ("L=1,NH=2,C=16,T=1024", 257), ("L=1,NH=2,C=16,T=1024,V=300", 300)]
)
def test_a_model_gets_the_vocabulary_of_its_data(shards, model, V):
    config, encoding = chosen(*shards, "-e", model)
    assert config.V == V and encoding.name == "bytes"


def test_the_built_in_text_is_bytes():
    config, encoding = chosen("-e", "d12")
    assert config.V == 257 and encoding.name == "bytes"
    with pytest.raises(UserError, match="bytes, V=257, got V=50304: write V=257"):
        chosen("-e", "L=1,NH=2,C=16,V=50304")


def test_shards_without_a_record_are_gpt2s_as_in_llmc(tmp_path, shards):
    (tmp_path / "x_tokenizer.json").unlink()
    assert chosen(*shards, "-e", "d12", "-s", "0")[0].V == 50257
    assert chosen(*shards, "-e", "L=1,NH=2,C=16,T=1024,V=300", "-s", "1") == (GPT2Config(1, 2, 16, 1024, 300), None)


TINY = ["-b", "2", "-t", "8", "-x", "1", "-v", "0", "--device", "cpu"]


@pytest.mark.parametrize("model", ["L=1,NH=2,C=16,V=50257", "file"])
def test_a_model_that_does_not_fit_is_refused_in_one_line(tmp_path, shards, capsys, model):
    if model == "file":
        model = str(tmp_path / "model.bin")
        config = GPT2Config(L=1, NH=1, C=8, max_T=8, V=900)
        write_model_file(model, config, np.zeros(config_size(config), np.float32))
    assert main([*TINY, *shards, "-e", model]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: the model must have the vocabulary of the data's tokenizer, bytes, V=257, got V=")
        and error.count("\n") == 1
    )


def config_size(config):
    from gpt2_numba.config import count_parameters

    return count_parameters(config)


def test_samples_are_text_though_the_model_counts_its_padding(shards, capsys):
    assert main([*TINY, *shards, "-e", "L=1,NH=2,C=16,V=384", "-s", "1", "-g", "40"]) == 0
    sample = capsys.readouterr().out.partition("generating:")[2]
    assert "V=384" not in sample and len(sample) > 20
