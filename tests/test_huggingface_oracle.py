"""Hugging Face folders against transformers: the same logits on both sides, the same tokens, and the published way of sampling.

transformers and PyTorch are optional (`pip install -e '.[oracle]'`); without them these tests are skipped with a message.
"""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from huggingface_folders import flat_parameters, lively_weights

from gpt2_numba import export as program
from gpt2_numba.check_model import relative_error
from gpt2_numba.config import GPT2Config, parameter_shapes
from gpt2_numba.data.tokenizers import byte_encoding, gpt2_encoding
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import bfloat16_bits
from gpt2_numba.huggingface import read_huggingface
from gpt2_numba.model import GPT2

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: it asks the hub for nothing
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]' to compare with it")
torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[oracle]' to compare with it")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
B, T = 2, 11
CONFIGS = [GPT2Config(L=2, NH=2, C=32, max_T=13, V=V) for V in (101, 128, 256, 257)]  # Vp = 128, 128, 256, 384
by_V = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"V={config.V}")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def tokens(V):
    return np.random.default_rng(3).integers(0, V, (B, T)).astype(np.int32)


def our_logits(path):
    config, pieces = read_huggingface(str(path))
    model = GPT2(config, B, T)
    model.load_pieces(pieces)
    model.forward(tokens(config.V))
    return model.logits_to_host()


def their_logits(path, dtype=torch.float32):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens(model.config.vocab_size).astype(np.int64))).logits.float().numpy()


def assert_close(config, ours, theirs, precision="fp32"):
    """Within the bound of check_model.py, which counts the roundings of both programs."""
    bound = relative_error(config, B, T, precision, tf32=False, backward=False) * np.abs(theirs).max()
    error = np.abs(ours - theirs)
    assert ours.shape == theirs.shape == (B, T, config.V) and np.abs(theirs).max() > 1
    assert error.max() <= bound, f"logits: at {np.unravel_index(error.argmax(), error.shape)} off by {error.max()}, bound {bound}"


def their_model(config):
    """A GPT2LMHeadModel with lively weights, biases and LayerNorms too."""
    torch.manual_seed(5)
    shape = dict(n_layer=config.L, n_head=config.NH, n_embd=config.C, n_positions=config.max_T, vocab_size=config.V)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=None, eos_token_id=None))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.15).add_(1 if ".ln_" in name and name.endswith("weight") else 0)
    return model


# -------------------------------------------------------------------------------------------------- theirs, read by us


@by_V
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_transformers_saves_has_the_same_logits_here(tmp_path, config, dtype):
    their_model(config).to(DTYPES[dtype]).save_pretrained(tmp_path)
    assert_close(config, our_logits(tmp_path), their_logits(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_in_several_files(tmp_path, dtype):
    config = CONFIGS[0]
    their_model(config).to(DTYPES[dtype]).save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists() and not (tmp_path / "model.safetensors").exists()
    assert_close(config, our_logits(tmp_path), their_logits(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("head", [True, False])
def test_a_pickled_model(tmp_path, dtype, head):
    """With the output layer, as GPT2LMHeadModel names its tensors; without, as GPT2Model does and the published gpt2."""
    config, model = CONFIGS[0], their_model(CONFIGS[0]).to(DTYPES[dtype])
    model.save_pretrained(tmp_path / "safe")
    model.config.save_pretrained(tmp_path / "bin")
    torch.save((model if head else model.transformer).state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert_close(config, our_logits(tmp_path / "bin"), their_logits(tmp_path / "safe"))


def test_the_plain_model_without_an_output_layer(tmp_path):
    config, model = CONFIGS[0], their_model(CONFIGS[0])
    model.save_pretrained(tmp_path / "whole")
    model.transformer.save_pretrained(tmp_path / "plain")
    assert_close(config, our_logits(tmp_path / "plain"), their_logits(tmp_path / "whole"))


def test_no_code_in_a_pickle_is_run(tmp_path):
    model = their_model(CONFIGS[0])
    model.config.save_pretrained(tmp_path)

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    for content in (model.state_dict() | {"trap": Trap()}, [1], {"a": 1}):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="must be a dictionary of tensors") as error:
            read_huggingface(str(tmp_path))
        assert "\n" not in str(error.value)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "field, value",
    [("activation_function", "gelu"), ("scale_attn_by_inverse_layer_idx", True), ("n_inner", 64), ("layer_norm_epsilon", 1e-6), ("tie_word_embeddings", False)],
)  # fmt: skip
def test_models_with_other_logits_are_refused(tmp_path, field, value):
    config = CONFIGS[0]
    shape = dict(n_layer=config.L, n_head=config.NH, n_embd=config.C, n_positions=config.max_T, vocab_size=config.V)
    options = shape | {"bos_token_id": None, "eos_token_id": None, field: value}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**options)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=field):
        read_huggingface(str(tmp_path))


# -------------------------------------------------------------------------------------------------- ours, read by them


def exported(tmp_path, config, dtype="float32", encoding=None):
    program.export(config, flat_parameters(lively_weights(config)), tmp_path / "out", dtype, encoding)
    return tmp_path / "out"


@by_V
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_exported_has_the_same_logits_there(tmp_path, config, dtype):
    weights = lively_weights(config)
    flat = flat_parameters(weights)
    program.export(config, flat, tmp_path / "out", dtype)
    model = GPT2(config, B, T)
    model.load_part("params", 0, flat if dtype == "float32" else bfloat16_bits(flat))
    model.forward(tokens(config.V))
    assert_close(config, model.logits_to_host(), their_logits(tmp_path / "out"))
    stored = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert stored.dtype == DTYPES[dtype] and type(stored) is transformers.GPT2LMHeadModel
    assert_close(config, model.logits_to_host(), their_logits(tmp_path / "out", torch.bfloat16), precision="bf16")


@by_V
def test_transformers_misses_no_tensor_and_finds_none_too_many(tmp_path, config):
    _, report = transformers.GPT2LMHeadModel.from_pretrained(exported(tmp_path, config), output_loading_info=True)
    assert not any(report.values()), report


def test_saved_again_by_transformers_it_is_the_same(tmp_path):
    config = CONFIGS[0]
    transformers.GPT2LMHeadModel.from_pretrained(exported(tmp_path, config)).save_pretrained(tmp_path / "again")
    read, pieces = read_huggingface(str(tmp_path / "again"))
    weights = lively_weights(config)
    assert read == config
    for name, layer, values in pieces:
        expected = weights[name] if weights[name].shape == values.shape else weights[name][layer]
        np.testing.assert_array_equal(values, expected, err_msg=f"{name} {layer}")
    assert set(weights) == set(parameter_shapes(read))


# ---------------------------------------------------------------------------------------------------------- tokenizers

AWKWARD = [
    "",
    " ",
    "Hello world",
    " leading, trailing ",
    "  two  spaces\n\n\n three\t\ttabs \r\n ",
    " " * 50 + "x" + "\n" * 20,
    "I'm, we've, they'LL, 'tis, ''s",
    "0 12 345 6789 3.14159 1e-5 ² ½ Ⅷ ٣٤",
    "naïve café ﬁ e\u0301 \u00e9 ß İ ı",
    "中文字 かな 한국어 עברית العربية ไทย",
    "😀 👩‍👩‍👧 🏳️‍🌈 \u200d\ufe0f",
    "\x00\x01\x1f\x7f\x80\xa0\xad\ufeff\ufffd\uffff\U0010ffff",
    "\u2028\u2029\u3000\u00a0\u200b\u180e mixed \u1680 spaces",
    "<|endoftext",
    "<endoftext|> <|end of text|>",
    "def f(x):\n    return {'a': x**2}  # comment\n",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbb!!!!!!!!????????",
    "https://example.org/?q=a%20b&c=d#e",
    "ǅ ʰ ₁ ᵃ ͅ \u0345 𝟘𝕏 𐐷",
]


@pytest.fixture(scope="module")
def encodings(tmp_path_factory):
    """name -> tiktoken.Encoding, with GPT-2's vocabulary if it is here."""
    cache = tmp_path_factory.mktemp("tiktoken")
    names = {"vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee", "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"}
    for name, hashed in names.items():
        if not (REAL_DATA / "gpt2_bpe" / name).is_file():
            pytest.skip(f"GPT-2's vocabulary is missing: {REAL_DATA / 'gpt2_bpe' / name}")
        shutil.copy(REAL_DATA / "gpt2_bpe" / name, cache / hashed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        return {"gpt2": gpt2_encoding(), "bytes": byte_encoding()}


@pytest.fixture(scope="module")
def folders(encodings, tmp_path_factory):
    """name of the tokenizer -> an exported folder with it."""
    paths = {}
    for name, encoding in encodings.items():
        path = tmp_path_factory.mktemp(name)
        paths[name] = exported(path, GPT2Config(L=1, NH=2, C=16, max_T=64, V=encoding.n_vocab), encoding=encoding)
    return paths


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
@pytest.mark.parametrize("without", [None, "tokenizer.json"])
def test_their_tokenizer_gives_tiktokens_ids(encodings, folders, tmp_path, name, without):
    """From either form of the files: tokenizer.json, or vocab.json and merges.txt."""
    encoding, path = encodings[name], Path(shutil.copytree(folders[name], tmp_path / "m"))
    if without:
        (path / without).unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert len(tokenizer) == encoding.n_vocab
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == encoding.eot_token
    for text in AWKWARD:
        expected = encoding.encode_ordinary(text)
        assert tokenizer(text)["input_ids"] == expected, repr(text)
        assert tokenizer.decode(expected) == text
    assert tokenizer("a<|endoftext|>b")["input_ids"] == encoding.encode("a<|endoftext|>b", allowed_special="all")


def test_their_tokenizer_gives_tiktokens_ids_on_a_long_text(encodings, folders):
    text = (REAL_DATA / "tinyshakespeare.txt").read_text()[:200_000]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["gpt2"])
    assert tokenizer(text)["input_ids"] == encodings["gpt2"].encode_ordinary(text)


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_the_published_way_of_sampling_runs(folders, name):
    """As on the model card of gpt2 and in build-nanogpt: top-k 50, four sequences from one prompt."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[name])
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[name])
    inputs = tokenizer("Hello, I'm a language model,", return_tensors="pt")
    torch.manual_seed(42)
    out = model.generate(**inputs, do_sample=True, top_k=50, max_length=48, num_return_sequences=4)
    assert out.shape[0] == 4 and inputs["input_ids"].shape[1] < out.shape[1] <= 48
    assert all(text.startswith("Hello, I'm a language model,") for text in tokenizer.batch_decode(out, skip_special_tokens=True))
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == len(tokenizer) - 1
    generate = transformers.pipeline("text-generation", model=str(folders[name]))
    assert len(generate("Hello,", max_new_tokens=5, num_return_sequences=2, do_sample=True)) == 2


# ------------------------------------------------------------------------------------------------------ hub's cache


def test_a_download_is_found_by_transformers(tmp_path, monkeypatch):
    """The cache is laid out as Hugging Face's library expects it."""
    from huggingface_hub import snapshot_download
    from test_huggingface import Hub

    hub = Hub()
    try:
        hub.models["me/mine"] = exported(tmp_path, CONFIGS[0])
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        read_huggingface("me/mine")
    finally:
        threading.Thread(target=hub.server.shutdown).start()
    found = snapshot_download("me/mine", cache_dir=tmp_path / "cache", local_files_only=True)
    assert (Path(found) / "model.safetensors").exists()
    assert transformers.AutoModelForCausalLM.from_pretrained("me/mine", cache_dir=tmp_path / "cache", local_files_only=True)
