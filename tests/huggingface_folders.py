"""Models and folders for the tests of gpt2_numba/huggingface: written here byte by byte, without the code that is tested."""

import json
import struct

import ml_dtypes
import numpy as np

from gpt2_numba.config import parameter_shapes

TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64, "I64": np.int64, "U8": np.uint8}


def lively_weights(config, seed=11):
    """Our 16 tensors, float32: biases are not zero, LayerNorms not one, and the padding of wte is zero."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        weights[name] = (rng.normal(size=shape) * 0.15 + (name in ("ln1w", "ln2w", "lnfw"))).astype(np.float32)
    weights["wte"][config.V :] = 0
    return weights


def flat_parameters(weights):
    """All tensors one after the other, as in a model file."""
    return np.concatenate([values.reshape(-1) for values in weights.values()])


def their_tensors(config, weights, prefix="transformer."):
    """The tensors as transformers names and shapes them."""
    tensors = {"wte.weight": weights["wte"][: config.V], "wpe.weight": weights["wpe"]}
    for layer in range(config.L):
        block = {name: values[layer] for name, values in weights.items() if name not in ("wte", "wpe", "lnfw", "lnfb")}
        tensors |= {
            f"h.{layer}.ln_1.weight": block["ln1w"],
            f"h.{layer}.ln_1.bias": block["ln1b"],
            f"h.{layer}.attn.c_attn.weight": block["qkvw"].T,
            f"h.{layer}.attn.c_attn.bias": block["qkvb"],
            f"h.{layer}.attn.c_proj.weight": block["attprojw"].T,
            f"h.{layer}.attn.c_proj.bias": block["attprojb"],
            f"h.{layer}.ln_2.weight": block["ln2w"],
            f"h.{layer}.ln_2.bias": block["ln2b"],
            f"h.{layer}.mlp.c_fc.weight": block["fcw"].T,
            f"h.{layer}.mlp.c_fc.bias": block["fcb"],
            f"h.{layer}.mlp.c_proj.weight": block["fcprojw"].T,
            f"h.{layer}.mlp.c_proj.bias": block["fcprojb"],
        }
    tensors |= {"ln_f.weight": weights["lnfw"], "ln_f.bias": weights["lnfb"]}
    return {prefix + name: values for name, values in tensors.items()}


def safetensors_bytes(tensors, dtype="F32", metadata=None):
    """A file of the format, all tensors of one type."""
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, values in tensors.items():
        raw = np.ascontiguousarray(values, TYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def config_json(config, **changes):
    """The text of a config.json; a change to `...` leaves the field out."""
    fields = {"model_type": "gpt2", "n_layer": config.L, "n_head": config.NH, "n_embd": config.C, "n_positions": config.max_T}
    fields |= {"vocab_size": config.V, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_inner": None} | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


def write_folder(path, config, weights, dtype="F32", prefix="transformer.", **changes):
    """A folder with model.safetensors. Returns its path."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config_json(config, **changes))
    (path / "model.safetensors").write_bytes(safetensors_bytes(their_tensors(config, weights, prefix), dtype))
    return path


def write_sharded_folder(path, config, weights, files=3):
    """A folder whose tensors are spread over several files, with an index."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(config_json(config))
    tensors = list(their_tensors(config, weights).items())
    weight_map = {}
    for index in range(files):
        name = f"model-{index + 1:05d}-of-{files:05d}.safetensors"
        part = dict(tensors[index::files])
        (path / name).write_bytes(safetensors_bytes(part))
        weight_map |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path
