"""Hugging Face folders for the fuzz drill: a right one, in which config.json, the weights or the index of the weights are damaged."""

import copy
import functools
import json
import os
import struct
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from dev.drills.fuzz_readers import CONFIG, JSON_VALUES, damaged, json_text
from gpt2_numba.huggingface import is_huggingface, read_huggingface
from gpt2_numba.huggingface.config_json import config_fields
from gpt2_numba.huggingface.folder import CONFIG_FILE, INDEX, PREFIX, WEIGHTS, their_names
from gpt2_numba.huggingface.safetensors_file import DTYPES, safetensors_header

SAFETENSORS = WEIGHTS[0]
SIZES = st.sampled_from((0, 1, 2, 3, -1, 7, 8, 64, 2**31, 2**63, 10**30, 10**400, 1.0, 1.5, True, None, "8", [8]))
OTHER_VALUES = st.one_of(SIZES, st.floats(), st.text(max_size=5), JSON_VALUES)


def targets():
    """(name, strategy of a file's bytes, use): use(directory, those bytes, or a path) reads a folder that has them."""
    return [
        ("config.json", st.one_of(json_text(_right()[CONFIG_FILE].decode()), _changed_config()), _folder_with(CONFIG_FILE)),
        ("model.safetensors", st.one_of(damaged(_right()[SAFETENSORS]), _changed_weights()), _folder_with(SAFETENSORS)),
        ("model.safetensors.index.json", st.one_of(json_text(_index().decode()), _changed_index()), _folder_with(SAFETENSORS + INDEX)),
    ]


@functools.cache
def _right():
    """name -> bytes of the files of a right folder."""
    shapes = {PREFIX + name: shape for name, shape in their_names(CONFIG).values()}
    values = [np.full(shape, 0.01, np.float32).tobytes() for shape in shapes.values()]
    config = json.dumps(config_fields(CONFIG, "float32", None)).encode()
    return {CONFIG_FILE: config, SAFETENSORS: safetensors_header(shapes, "F32") + b"".join(values)}


def _index():
    names = [PREFIX + name for name, _ in their_names(CONFIG).values()]
    return json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")}).encode()


def _folder_with(name):
    """use for a file of a folder."""

    def use(directory, content):
        folder = directory / "folder"
        folder.mkdir()
        for other, data in _right().items():
            (folder / other).write_bytes(data)
        if name.endswith(INDEX):  # the weights are in the file that the index names
            os.rename(folder / SAFETENSORS, folder / "part.safetensors")
        if isinstance(content, Path):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)
        assert is_huggingface(str(folder))
        for _, _, values in read_huggingface(str(folder))[1]:
            np.sum(values)

    return use


@st.composite
def _changed_config(draw):
    """JSON with some fields changed, left out or added."""
    fields = json.loads(_right()[CONFIG_FILE])
    names = st.sampled_from([*fields, "scale_attn_by_inverse_layer_idx", "add_cross_attention", "x"])
    for name, value in draw(st.dictionaries(names, OTHER_VALUES, min_size=1, max_size=4)).items():
        fields[name] = value
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=2, unique=True)):
        del fields[name]
    return json.dumps(fields).encode()


@st.composite
def _changed_index(draw):
    index = json.loads(_index())
    file = st.one_of(
        st.sampled_from(("part.safetensors", "none.safetensors", "x.bin", "..", ".safetensors", "", "a/b.safetensors")), OTHER_VALUES
    )
    index["weight_map"].update(draw(st.dictionaries(st.sampled_from([*index["weight_map"], "x"]), file, min_size=1, max_size=4)))
    return json.dumps(index).encode()


@st.composite
def _changed_weights(draw):
    """A header in which tensors have other shapes, types or places, are missing, or are too many; with all data, or only some."""
    data = _right()[SAFETENSORS]
    (length,) = struct.unpack("<Q", data[:8])
    header, tensors = json.loads(data[8 : 8 + length]), data[8 + length :]
    for _ in range(draw(st.integers(1, 3))):
        _change_header(draw, header)
    text = json.dumps(header).encode()
    kept = draw(st.sampled_from((len(tensors), len(tensors), len(tensors) - 1, 0)))
    return struct.pack("<Q", len(text)) + text + tensors[:kept]


def _change_header(draw, header):
    name = draw(st.sampled_from(sorted(header)))
    entry = header[name]
    how = draw(st.sampled_from(("shape", "transpose", "type", "place", "missing", "too many", "anything")))
    is_tensor = isinstance(entry, dict) and isinstance(entry.get("shape"), list)
    if how == "missing":
        del header[name]
    elif how == "too many":
        header[draw(st.sampled_from(("h.9.ln_1.weight", "lm_head.weight", "transformer.h.0.attn.bias", "x", "")))] = copy.deepcopy(entry)
    elif how == "anything" or not is_tensor:
        header[name] = draw(OTHER_VALUES)
    elif how == "shape":
        entry["shape"] = draw(st.lists(SIZES, max_size=70))
    elif how == "transpose":
        entry["shape"] = entry["shape"][::-1]
    elif how == "type":
        entry["dtype"] = draw(st.one_of(st.sampled_from([*DTYPES, "F8_E4M3", "f32"]), OTHER_VALUES))
    else:
        entry["data_offsets"] = draw(st.lists(st.one_of(SIZES, st.integers(0, 10**5)), min_size=1, max_size=3))
