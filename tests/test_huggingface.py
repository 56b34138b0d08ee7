"""Hugging Face folders without Hugging Face: reading, writing, the hub's cache and downloads, and training from them.

tests/test_huggingface_oracle.py compares with transformers.
"""

import errno
import hashlib
import http.server
import json
import os
import shutil
import struct
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from huggingface_folders import (
    config_json,
    flat_parameters,
    lively_weights,
    safetensors_bytes,
    their_tensors,
    write_folder,
    write_sharded_folder,
)

from gpt2_numba import export as program
from gpt2_numba.config import GPT2Config, parameter_shapes
from gpt2_numba.data.fetching import download
from gpt2_numba.data.tokenizers import byte_encoding, gpt2_encoding
from gpt2_numba.errors import UserError
from gpt2_numba.gpu.backend import bfloat16_bits, bfloat16_values
from gpt2_numba.huggingface import huggingface_config, huggingface_files, is_huggingface, read_huggingface
from gpt2_numba.huggingface.safetensors_file import read_safetensors
from gpt2_numba.huggingface.tokenizer_files import merged_pairs, tokenizer_files
from gpt2_numba.model import GPT2
from gpt2_numba.train import main as train
from gpt2_numba.training import checkpoint
from gpt2_numba.training.model_file import read_model_file, write_model_file
from gpt2_numba.training.saved_model import read_saved_model

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CONFIG = GPT2Config(L=2, NH=3, C=24, max_T=5, V=37)
BYTES = GPT2Config(L=1, NH=2, C=16, max_T=16, V=257)
SIZES = [CONFIG, GPT2Config(L=1, NH=1, C=8, max_T=3, V=128), GPT2Config(L=2, NH=2, C=16, max_T=7, V=257)]
ids_by_V = pytest.mark.parametrize("config", SIZES, ids=lambda config: f"V={config.V}")


@pytest.fixture(autouse=True)
def nothing_of_the_users(tmp_path, monkeypatch):
    """The user's own cache is neither read nor written, and nothing leaves this machine."""
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server there
    monkeypatch.setattr(download, "PAUSES", ())
    monkeypatch.setattr(download, "PAUSES_BEFORE_THE_FIRST_ANSWER", ())


def load(name):
    """(GPT2Config, our 16 tensors) of a Hugging Face model, by way of a GPT2."""
    config, pieces = read_huggingface(str(name))
    model = GPT2(config, 1, 1)
    model.memory["params"][:] = np.nan  # every number must be set
    model.load_pieces(pieces)
    return config, model.params_to_host()


def assert_same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(tensors[name], expected[name], err_msg=name)


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------- reading


@ids_by_V
@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_folder_is_read_exactly(tmp_path, config, prefix, dtype):
    weights = lively_weights(config)
    read_config, tensors = load(write_folder(tmp_path / "m", config, weights, dtype, prefix))
    as_written = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    assert read_config == config
    assert_same(tensors, {name: values.astype(as_written).astype(np.float32) for name, values in weights.items()})


def test_weights_may_be_in_several_files(tmp_path):
    weights = lively_weights(CONFIG)
    path = write_sharded_folder(tmp_path / "m", CONFIG, weights)
    assert_same(load(path)[1], weights)
    assert len(huggingface_files(str(path))) == 4 and huggingface_config(str(path)) == CONFIG
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="names 3 files, and model-00002-of-00003.safetensors is missing") as error:
        read_huggingface(str(path))
    one_line(error)


def test_the_tensors_are_not_read_before_their_turn(tmp_path):
    """Of a model of gigabytes, only one tensor is in memory at a time: one that is read has memory of its own."""
    path = write_folder(tmp_path / "m", CONFIG, lively_weights(CONFIG))
    pieces = read_huggingface(str(path))[1]
    name, layer, values = next(pieces)
    assert (name, layer, values.dtype, values.shape) == ("wte", 0, np.float32, (128, 24))
    assert [(name, layer) for name, layer, _ in pieces][:3] == [("wpe", 0), ("ln1w", 0), ("ln1w", 1)]


def test_what_old_files_hold_besides_the_weights_is_ignored(tmp_path):
    weights = lively_weights(CONFIG)
    path = write_folder(tmp_path / "m", CONFIG, weights, prefix="")
    others = {f"h.{layer}.attn.bias": np.ones((1, 1, 5, 5)) for layer in range(2)} | {"h.0.attn.masked_bias": np.float32(-1e4)}
    others |= {"lm_head.weight": weights["wte"][: CONFIG.V], "score.weight": np.ones((2, 24))}
    (path / "model.safetensors").write_bytes(safetensors_bytes(their_tensors(CONFIG, weights, "") | others))
    assert_same(load(path)[1], weights)


@pytest.mark.parametrize(
    "field, value",
    [
        ("model_type", "gpt_neo"),
        ("activation_function", "gelu"),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-6),
        ("tie_word_embeddings", False),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_by_inverse_layer_idx", 1),
        ("add_cross_attention", True),
        ("n_inner", 4 * 24 + 8),
        ("n_layer", 0),
        ("n_layer", True),
        ("n_embd", "24"),
        ("n_head", 5),
        ("vocab_size", None),
        ("n_positions", 1.5),
        ("n_layer", 10**30),
        ("model_type", "x" * 1000),
    ],
)
def test_what_is_not_gpt2_is_refused_by_the_name_of_the_field(tmp_path, field, value):
    path = write_folder(tmp_path / "m", CONFIG, lively_weights(CONFIG), **{field: value})
    with pytest.raises(UserError, match=field) as error:
        read_huggingface(str(path))
    assert len(one_line(error)) < len(str(path)) + 400


@pytest.mark.parametrize(
    "field, value",
    [("n_inner", 96), ("activation_function", ...), ("activation_function", "gelu_pytorch_tanh"), ("tie_word_embeddings", True)],
)
def test_what_is_gpt2_in_other_words_is_read(tmp_path, field, value):
    assert huggingface_config(str(write_folder(tmp_path / "m", CONFIG, lively_weights(CONFIG), **{field: value}))) == CONFIG


def test_absent_sizes_are_those_of_gpt2(tmp_path):
    path = write_folder(tmp_path / "m", CONFIG, lively_weights(CONFIG), n_layer=...)
    with pytest.raises(UserError, match="a GPT-2 with L=12,.* has a tensor h.2.ln_1.weight, and the weights have none"):
        read_huggingface(str(path))


def change(tensors, name, values):
    return tensors | {"transformer." + name if name != "lm_head.weight" else name: values}


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("h.1.attn.c_attn.weight", np.ones((72, 24)), r"h.1.attn.c_attn.weight must be \(24, 72\)"),
        ("wte.weight", np.ones((38, 24)), r"wte.weight must be \(37, 24\)"),
        ("lm_head.weight", np.ones((37, 24)), "lm_head.weight must be equal to wte.weight"),
        ("h.2.ln_1.weight", np.ones(24), "has no tensor h.2.ln_1.weight"),
        ("h.0.attn.c_attn.lora_A.weight", np.ones((4, 24)), "has no tensor h.0.attn.c_attn.lora_A.weight"),
    ],
)
def test_tensors_of_another_model_are_refused(tmp_path, name, values, message):
    path = write_folder(tmp_path / "m", CONFIG, lively_weights(CONFIG))
    tensors = change(their_tensors(CONFIG, lively_weights(CONFIG)), name, values)
    (path / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with pytest.raises(UserError, match=message) as error:
        read_huggingface(str(path))
    one_line(error)


@pytest.mark.parametrize("dtype", ["F64", "I64", "U8"])
def test_weights_of_other_types_are_refused(tmp_path, dtype):
    path = write_folder(tmp_path / "m", CONFIG, lively_weights(CONFIG), dtype)
    with pytest.raises(UserError, match="must be float32, float16 or bfloat16, and wte.weight is"):
        read_huggingface(str(path))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, dtype, value):
    weights = lively_weights(CONFIG)
    weights["fcprojw"][1, 3, 5] = value
    path = write_folder(tmp_path / "m", CONFIG, weights, dtype)
    with pytest.raises(UserError, match=r"must be finite numbers, and h.1.mlp.c_proj.weight has others"):
        load(path)


# -------------------------------------------------------------------------------------------------------- safetensors


def test_safetensors_are_read_without_copying_them(tmp_path):
    tensors = {"a": np.arange(6.0).reshape(2, 3), "scalar": np.array(7.0), "empty": np.ones((0, 4))}
    (tmp_path / "f").write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))
    read = read_safetensors(tmp_path / "f")
    assert_same(read, tensors)
    assert not read["a"].flags.owndata and not read["a"].flags.writeable


def header(**entries):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not the length of a header"),
        (b"\x05\0\0\0\0\0\0\0{}", "not the length of a header"),
        (b"\xff" * 20, "not the length of a header"),
        (struct.pack("<Q", 4) + b"nope", "not JSON"),
        (struct.pack("<Q", 50_000) + b"[" * 50_000, "not JSON"),
        (struct.pack("<Q", 2) + b"[]", "not a dictionary"),
        (header(a=3), "does not say what 'a' is"),
        (header(a={"dtype": "F32"}), "does not say what 'a' is"),
        (header(a=ENTRY | {"data_offsets": [0]}) + bytes(8), "does not say what 'a' is"),
        (header(a=ENTRY) + bytes(7), "'a', F32 .2., is not in bytes 0 to 8 of 7"),
        (header(a=ENTRY | {"shape": [3]}) + bytes(8), "'a', F32 .3., is not in bytes"),
        (header(a=ENTRY | {"shape": [-2]}) + bytes(8), "is not in bytes"),
        (header(a=ENTRY | {"shape": ["2"]}) + bytes(8), "is not in bytes"),
        (header(a=ENTRY | {"data_offsets": [8, 0]}) + bytes(8), "is not in bytes"),
        (header(a=ENTRY | {"dtype": "F8_E4M3"}) + bytes(8), "'a' is 'F8_E4M3'"),
        (header(a=ENTRY | {"dtype": ["F32"]}) + bytes(8), "'a' is"),
    ],
)
def test_a_damaged_safetensors_file_is_refused(tmp_path, content, message):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_safetensors(tmp_path / "f")
    one_line(error)


# ---------------------------------------------------------------------------------------------------- incomplete folders


def break_folder(path, what):
    match what:
        case "no config":
            (path / "config.json").unlink()
        case "log directory":
            (path / "config.json").unlink()
            (path / "model_00000003.bin").touch()
        case "no weights":
            (path / "model.safetensors").unlink()
        case "config cut off":
            (path / "config.json").write_text(config_json(CONFIG)[:-5])
        case "config of no dictionary":
            (path / "config.json").write_text("[1]")
        case "huge config":
            (path / "config.json").write_text(" " * (1 << 20) + config_json(CONFIG))
        case "index to elsewhere":
            (path / "model.safetensors").rename(path.parent / "model.safetensors")
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": "../model.safetensors"}}))
        case "index of nothing":
            (path / "model.safetensors").unlink()
            (path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
        case "index of a name that no file can have":
            (path / "model.safetensors").unlink()
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": "9" * 5000 + ".safetensors"}}))


@pytest.mark.parametrize(
    "what, message",
    [
        ("no config", "has no config.json"),
        ("log directory", r"a run's log directory has model_\*.bin"),
        ("no weights", "must have weights, model.safetensors or pytorch_model.bin"),
        ("config cut off", "must be a dictionary in JSON"),
        ("config of no dictionary", "must be a dictionary in JSON"),
        ("huge config", "must be a dictionary in JSON"),
        ("index to elsewhere", "weight_map"),
        ("index of nothing", "weight_map"),
        ("index of a name that no file can have", "names 1 files, and 9{200} is missing"),
    ],
)
def test_an_incomplete_folder_is_refused(tmp_path, what, message):
    path = write_folder(tmp_path / "m", CONFIG, lively_weights(CONFIG))
    break_folder(path, what)
    with pytest.raises(UserError, match=message) as error:
        read_huggingface(str(path))
    one_line(error)


def test_a_bin_file_needs_pytorch(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "m", CONFIG, lively_weights(CONFIG))
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch") as error:
        read_huggingface(str(path))
    one_line(error)


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name, theirs",
    [
        ("d12", False),
        ("gpt2:d12", False),
        ("L=2,NH=2,C=16", False),
        ("L=2,NH=2,C=16/2", False),
        ("model.bin", False),
        ("folder/model.bin", False),
        ("d13", False),
        ("gpt2", True),
        ("gpt2-xl", True),
        ("gpt2-small", False),
        ("openai-community/gpt2", True),
        ("./nothing", True),
        ("/no/such/folder", True),
        ("a\0b", False),
    ],
)
def test_which_names_are_hugging_faces(tmp_path, monkeypatch, name, theirs):
    monkeypatch.chdir(tmp_path)
    assert is_huggingface(name) is theirs


def test_a_folder_goes_before_the_hub_and_a_descriptor_before_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "me/model", "mine", "d12"):
        write_folder(tmp_path / name, CONFIG, lively_weights(CONFIG))
    assert [read_huggingface(name)[0] for name in ("gpt2", "me/model", "mine")] == [CONFIG] * 3
    assert is_huggingface("mine") and not is_huggingface("d12")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "a/b/c"])
def test_a_path_that_does_not_exist_is_a_mistake(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no such folder") as error:
        read_huggingface(name)
    one_line(error)


# ----------------------------------------------------------------------------------------------------------------- hub


class Hub:
    """A hub with the models in `models`: OWNER/NAME -> folder. `asked` are the paths of all requests."""

    commit = "c0ffee" * 6 + "abcd"

    def __init__(self):
        self.models, self.asked, self.altered = {}, [], set()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append(self.path)
                content = hub.answer(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path):
        for model, folder in self.models.items():
            if path == f"/api/models/{model}/revision/main?blobs=true":
                return json.dumps({"sha": self.commit, "siblings": [self.listed(file) for file in sorted(folder.iterdir())]}).encode()
            start = f"/{model}/resolve/{self.commit}/"
            if path.startswith(start):
                content = (folder / path.removeprefix(start)).read_bytes()
                return content[:-1] + b"\0" if path.removeprefix(start) in self.altered else content
        return None

    @staticmethod
    def listed(file):
        content = file.read_bytes()
        entry = {"rfilename": file.name, "size": len(content), "blobId": "0" * 40}
        if file.suffix in (".safetensors", ".bin"):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.address + "/")
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.mark.parametrize("write", [write_folder, write_sharded_folder])
def test_a_model_is_downloaded_once_and_then_taken_from_the_cache(tmp_path, hub, write):
    weights = lively_weights(CONFIG)
    hub.models["openai-community/gpt2"] = write(tmp_path / "theirs", CONFIG, weights)
    (tmp_path / "theirs" / "tf_model.h5").write_bytes(b"a file that is not needed")
    assert huggingface_config("gpt2") is None and huggingface_files("gpt2") == []
    assert_same(load("gpt2")[1], weights)
    assert not any("tf_model" in path for path in hub.asked)
    cached = tmp_path / "hf" / "hub" / "models--openai-community--gpt2"
    assert (cached / "refs" / "main").read_text() == hub.commit
    assert huggingface_files("gpt2")[0] == cached / "snapshots" / hub.commit / "config.json"
    hub.asked.clear()
    for name in ("gpt2", "openai-community/gpt2"):
        assert_same(load(name)[1], weights)
    assert hub.asked == []


def test_the_cache_that_transformers_made_before_models_had_owners_is_used(tmp_path, monkeypatch):
    weights, cached = lively_weights(CONFIG), tmp_path / "elsewhere" / "models--gpt2"
    write_folder(cached / "snapshots" / "abc", CONFIG, weights)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert_same(load("gpt2")[1], weights)
    (cached / "snapshots" / "abc" / "model.safetensors").unlink()  # transformers fetches each file when it needs it
    assert huggingface_config("gpt2") is None


def test_a_broken_download_is_no_model_and_goes_on(tmp_path, hub):
    weights = lively_weights(CONFIG)
    hub.models["me/mine"] = write_folder(tmp_path / "theirs", CONFIG, weights)
    hub.altered.add("model.safetensors")
    with pytest.raises(UserError, match="SHA-256"):
        read_huggingface("me/mine")
    assert huggingface_config("me/mine") is None
    hub.altered.clear()
    assert_same(load("me/mine")[1], weights)
    assert sum(path.endswith("config.json") for path in hub.asked) == 1


def test_another_kind_of_model_is_refused_before_its_weights_come(tmp_path, hub):
    hub.models["me/neo"] = write_folder(tmp_path / "theirs", CONFIG, lively_weights(CONFIG), model_type="gpt_neo")
    with pytest.raises(UserError, match="model_type"):
        read_huggingface("me/neo")
    assert not any(path.endswith("model.safetensors") for path in hub.asked)


@pytest.mark.parametrize(
    "answer, message",
    [
        (None, "me/mine is neither a folder here nor in .*, and the hub does not give it: .*404"),
        (b"{}", "the hub's answer must say its commit"),
        (b"[1]", "the hub's answer must say its commit"),
        (b'{"sha": "../..", "siblings": []}', "the hub's answer must say its commit"),
        (b'{"sha": "' + b"a" * 40 + b'", "siblings": [{"rfilename": "config.json"}]}', "it is no GPT2LMHeadModel"),
    ],
)
def test_what_the_hub_does_not_have_is_a_mistake(tmp_path, hub, monkeypatch, answer, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "answer", lambda path: answer)
    with pytest.raises(UserError, match=message) as error:
        read_huggingface("me/mine")
    one_line(error)


def test_offline_nothing_is_asked(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        read_huggingface("gpt2")
    assert hub.asked == []


def test_two_at_a_time_download_it_once(tmp_path, hub):
    hub.models["me/mine"] = write_folder(tmp_path / "theirs", CONFIG, lively_weights(CONFIG))
    configs = []
    threads = [threading.Thread(target=lambda: configs.append(read_huggingface("me/mine")[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert configs == [CONFIG] * 3
    assert sum(path.endswith("model.safetensors") for path in hub.asked) == 1


# -------------------------------------------------------------------------------------------------------------- export


def model_file(path, config, weights, dtype=np.float32):
    flat = flat_parameters(weights)
    write_model_file(path, config, flat if dtype == np.float32 else bfloat16_bits(flat))
    return path


@ids_by_V
@pytest.mark.parametrize("piece", [1, 100, 1 << 22])
@pytest.mark.parametrize("source", [np.float32, np.uint16])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_what_is_exported_is_read_again_with_the_same_bits(tmp_path, monkeypatch, config, piece, source, dtype):
    monkeypatch.setattr(program, "PIECE", piece)
    weights = lively_weights(config)
    config, flat = read_model_file(model_file(tmp_path / "m.bin", config, weights, source))
    program.export(config, flat, tmp_path / "new" / "out", dtype)
    read_config, tensors = load(tmp_path / "new" / "out")
    assert read_config == config
    exact = source == np.float32 and dtype != "bfloat16"
    assert_same(tensors, {name: values if exact else bfloat16_values(bfloat16_bits(values)) for name, values in weights.items()})


def test_the_padding_of_the_vocabulary_is_not_exported(tmp_path):
    weights = lively_weights(CONFIG)
    weights["wte"][CONFIG.V :] = 5
    program.export(CONFIG, flat_parameters(weights), tmp_path / "out")
    assert read_safetensors(tmp_path / "out" / "model.safetensors")["transformer.wte.weight"].shape == (37, 24)
    assert not load(tmp_path / "out")[1]["wte"][CONFIG.V :].any()


@pytest.mark.parametrize(
    "V, end_of_text, files",
    [
        (37, None, []),
        (257, 256, ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]),
    ],
)
def test_the_files_of_an_export(tmp_path, V, end_of_text, files):
    config = GPT2Config(L=1, NH=1, C=8, max_T=6, V=V)
    path = model_file(tmp_path / "m.bin", config, lively_weights(config))
    assert program.main([str(path), str(tmp_path / "out")]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(["config.json", "generation_config.json", "model.safetensors", *files])
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((tmp_path / "out" / name).read_text())
        assert (fields["bos_token_id"], fields["eos_token_id"]) == (end_of_text, end_of_text)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["n_positions"], fields["vocab_size"], fields["torch_dtype"]) == (6, V, "float32")


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    flat = flat_parameters(lively_weights(CONFIG))
    pieces = program._pieces

    def full_disk(*arguments):
        yield next(pieces(*arguments))
        assert not (tmp_path / "out").exists() and (tmp_path / ".out.part" / "model.safetensors").exists()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(program, "_pieces", full_disk)
    with pytest.raises(UserError, match="No space left") as error:
        program.export(CONFIG, flat, tmp_path / "out")
    one_line(error)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_export_left_is_replaced(tmp_path):
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "rubbish").touch()
    (tmp_path / "out").mkdir()
    program.export(CONFIG, flat_parameters(lively_weights(CONFIG)), tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"] and "rubbish" not in os.listdir(tmp_path / "out")


def test_an_export_overwrites_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "file").touch()
    for name in ("out", "file"):
        with pytest.raises(UserError, match="must be a new or an empty directory"):
            program.export(CONFIG, flat_parameters(lively_weights(CONFIG)), tmp_path / name)


def test_room_on_the_disk_is_checked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(program.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 50, 50))
    with pytest.raises(UserError, match="make room"):
        program.export(CONFIG, flat_parameters(lively_weights(CONFIG)), tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "MODEL"),
        (["absent.bin", "out"], "absent.bin"),
        (["m.bin", "out", "--dtype", "float16"], "--dtype"),
        (["m.bin", "out", "--tokenizer", "bytes"], "at most the model's 37 tokens"),
        (["empty", "out"], "must have a complete checkpoint"),
        (["m.bin", "m.bin"], "must be a new or an empty directory"),
        (["m.bin", "m.bin/out"], "cannot be written"),
    ],
)
def test_mistakes_on_the_command_line_give_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    model_file(tmp_path / "m.bin", CONFIG, lively_weights(CONFIG))
    (tmp_path / "empty").mkdir()
    assert program.main(arguments) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and message in complaint and complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_its_vocabulary_gpt2_can_be_exported_without_a_tokenizer(tmp_path, monkeypatch, capsys):
    config = GPT2Config(L=1, NH=1, C=8, max_T=6, V=50257)
    path = model_file(tmp_path / "m.bin", config, lively_weights(config))

    def absent(V):
        raise UserError("the GPT-2 tokenizer needs its vocabulary")

    monkeypatch.setattr(program, "encoding_for_vocab", absent)
    assert program.main([str(path), str(tmp_path / "out")]) == 2
    assert "--tokenizer none" in capsys.readouterr().err
    assert program.main([str(path), str(tmp_path / "out"), "--tokenizer", "none"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 50256


def test_the_files_of_gpt2s_tokenizer_are_those_it_was_published_with(tmp_path, monkeypatch):
    for name, hashed in {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }.items():
        if not (REAL_DATA / "gpt2_bpe" / name).is_file():
            pytest.skip(f"GPT-2's vocabulary is missing: {REAL_DATA / 'gpt2_bpe' / name}")
        shutil.copy(REAL_DATA / "gpt2_bpe" / name, tmp_path / hashed)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    files = tokenizer_files(gpt2_encoding(), max_T=1024)
    assert files["merges.txt"] == (REAL_DATA / "gpt2_bpe" / "vocab.bpe").read_text(encoding="utf-8")
    assert json.loads(files["vocab.json"]) == json.loads((REAL_DATA / "gpt2_bpe" / "encoder.json").read_text(encoding="utf-8"))
    assert json.loads(files["tokenizer.json"])["model"]["merges"] == files["merges.txt"].splitlines()[1:]


def test_the_byte_tokenizer_has_a_letter_for_each_byte_and_no_mergers():
    files = tokenizer_files(byte_encoding(), max_T=16)
    vocabulary = json.loads(files["vocab.json"])
    assert sorted(vocabulary.values()) == list(range(257)) and vocabulary["<|endoftext|>"] == 256
    assert (vocabulary["A"], vocabulary["Ġ"], vocabulary["Ċ"], vocabulary["ÿ"]) == (65, 32, 10, 255)
    assert files["merges.txt"] == "#version: 0.2\n"


def test_a_token_that_is_no_merger_of_two_others_is_noticed():
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256}
    with pytest.raises(ValueError, match="token 256, b'abc', is not the merger of two others"):
        merged_pairs(ranks)


# ------------------------------------------------------------------------------------------------------- saved models


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """The log directory of a run with checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("run") / "log"
    flags = "-e L=1,NH=2,C=16,T=16 -b 1 -t 16 -x 2 -n 1 -v 0 -s 0 --device cpu".split()
    assert train([*flags, "-o", str(directory)]) == 0
    return directory


@pytest.fixture
def run_directory(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run, tmp_path / "log"))


@pytest.mark.parametrize(
    "name, step", [("", 2), ("DONE_00000001", 1), ("DONE_00000002", 2), ("model_00000001.bin", 1), ("model_00000002.bin", 2)]
)
def test_a_saved_model_is_found(run_directory, name, step):
    config, flat, path = read_saved_model(run_directory / name)
    assert path == run_directory / f"model_{step:08d}.bin"
    assert config == BYTES
    np.testing.assert_array_equal(flat, read_model_file(path)[1])


def test_only_the_model_of_a_checkpoint_is_needed(run_directory):
    for path in run_directory.glob("state_*"):
        path.unlink()
    assert read_saved_model(run_directory)[2].name == "model_00000002.bin"


def test_a_damaged_checkpoint_is_skipped_but_not_if_it_was_named(run_directory, capsys):
    with open(run_directory / "model_00000002.bin", "r+b") as file:
        file.seek(2000)
        file.write(b"\x01\x02\x03\x04")
    assert read_saved_model(run_directory)[2].name == "model_00000001.bin"
    assert "checkpoint of step 2 cannot be used" in capsys.readouterr().err
    for name in ("model_00000002.bin", "DONE_00000002"):
        with pytest.raises(UserError, match="checksums recorded in DONE"):
            read_saved_model(run_directory / name)
    (run_directory / "model_00000001.bin").unlink()
    with pytest.raises(UserError, match="none of its 2 checkpoints can be read"):
        read_saved_model(run_directory)


def test_a_checkpoint_of_llmc_has_no_checksums(run_directory):
    for path in run_directory.glob("DONE_*"):
        path.write_bytes(b"")
    assert read_saved_model(run_directory)[2].name == "model_00000002.bin"


# ------------------------------------------------------------------------------------------------------------ training


def test_training_continues_from_an_exported_model(run_directory, tmp_path, capsys):
    """The first step of the new run has the loss that the old run's parameters have, and its checkpoint resumes without the folder."""
    flags = "-b 1 -t 16 -v 1 -s 0 --device cpu -u 0".split()
    assert program.main([str(run_directory), str(tmp_path / "hf_model")]) == 0
    losses = []
    for model, log in [(tmp_path / "hf_model", "a"), (run_directory / "model_00000002.bin", "b")]:
        capsys.readouterr()
        assert train([*flags, "-x", "2", "-n", "1", "-e", str(model), "-o", str(tmp_path / log)]) == 0
        losses.append([line.split("|")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith(("step ", "val loss"))])
    assert losses[0] == losses[1] and len(losses[0]) == 5
    shutil.rmtree(tmp_path / "hf_model")
    assert train([*flags, "-x", "3", "-y", "1", "-e", str(tmp_path / "hf_model"), "-o", str(tmp_path / "a")]) == 0
    assert "resumed after 2 steps" in capsys.readouterr().out
    assert checkpoint.complete_checkpoints(tmp_path / "a")[0] == 3


def test_training_starts_from_a_model_of_the_hub(tmp_path, hub, capsys):
    hub.models["openai-community/gpt2"] = write_folder(tmp_path / "theirs", BYTES, lively_weights(BYTES))
    flags = ["-e", "gpt2", "-b", "1", "-t", "16", "-x", "1", "-v", "0", "-s", "0", "--device", "cpu", "-o", str(tmp_path / "log")]
    assert train(flags) == 0
    assert f"{BYTES}" in capsys.readouterr().out


def test_a_resumed_run_says_if_its_model_is_not_the_one_named(run_directory, tmp_path, capsys):
    path = write_folder(tmp_path / "other", GPT2Config(L=1, NH=2, C=16, max_T=32, V=257), lively_weights(GPT2Config(1, 2, 16, 32, 257)))
    flags = [
        "-e",
        str(path),
        "-b",
        "1",
        "-t",
        "16",
        "-x",
        "3",
        "-y",
        "1",
        "-v",
        "0",
        "-s",
        "0",
        "--device",
        "cpu",
        "-o",
        str(run_directory),
    ]
    assert train(flags) == 0
    assert f"the model is the checkpoint's, {BYTES}, not {path}" in capsys.readouterr().out


def test_shapes_cover_all_parameters():
    """The table of names has each of the 16 tensors once."""
    from gpt2_numba.huggingface.folder import BLOCK_NAMES, OTHER_NAMES

    assert sorted([*BLOCK_NAMES, *OTHER_NAMES]) == sorted(parameter_shapes(CONFIG))
