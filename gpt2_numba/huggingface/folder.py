"""A folder with a GPT2LMHeadModel: config.json, and the weights in one of these, the first that exists:

    model.safetensors                   or model.safetensors.index.json, which says which tensor is in which of several files
    pytorch_model.bin                   or pytorch_model.bin.index.json; these need PyTorch

Names of tensors begin with "transformer.", or not, in the files of the plain GPT2Model, gpt2 on the hub among them. Types are float32,
float16 and bfloat16; all are read as float32, which is exact. Weights of linear layers are (in, out), transposed against ours; the output
layer is wte.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from gpt2_numba.config import ONCE, GPT2Config, parameter_shapes
from gpt2_numba.errors import UserError
from gpt2_numba.huggingface.config_json import MAX_INDEX_BYTES, read_config, read_json
from gpt2_numba.huggingface.safetensors_file import read_safetensors

CONFIG_FILE = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"  # after the name of the weights
PREFIX = "transformer."

# Our tensor -> theirs, in each block after "h.N.".
BLOCK_NAMES = {
    "ln1w": "ln_1.weight", "ln1b": "ln_1.bias",
    "qkvw": "attn.c_attn.weight", "qkvb": "attn.c_attn.bias",
    "attprojw": "attn.c_proj.weight", "attprojb": "attn.c_proj.bias",
    "ln2w": "ln_2.weight", "ln2b": "ln_2.bias",
    "fcw": "mlp.c_fc.weight", "fcb": "mlp.c_fc.bias",
    "fcprojw": "mlp.c_proj.weight", "fcprojb": "mlp.c_proj.bias",
}  # fmt: skip
OTHER_NAMES = {"wte": "wte.weight", "wpe": "wpe.weight", "lnfw": "ln_f.weight", "lnfb": "ln_f.bias"}
TRANSPOSED = ("qkvw", "attprojw", "fcw", "fcprojw")  # transformers' Conv1D
HEAD = "lm_head.weight"

_MASKS = (".attn.bias", ".attn.masked_bias")  # the causal mask, which old versions of transformers kept in the file
_TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def their_names(config):
    """(our tensor, layer) -> (their name without prefix, their shape), in our order."""
    names = {}
    for name, shape in parameter_shapes(config).items():
        if name in ONCE:
            names[name, 0] = OTHER_NAMES[name], (config.V, config.C) if name == "wte" else shape
        else:
            theirs = shape[:0:-1] if name in TRANSPOSED else shape[1:]
            names.update({(name, layer): (f"h.{layer}.{BLOCK_NAMES[name]}", theirs) for layer in range(config.L)})
    return names


@dataclass(frozen=True)
class Folder:
    """An open folder. Its tensors are memory maps."""

    config: GPT2Config
    paths: list  # of config.json and of the weights, Paths
    tensors: dict  # their name without prefix -> array of one of _TYPES

    def pieces(self):
        """Yield (name, layer, float32 array) as read_huggingface says."""
        for (name, layer), (theirs, _) in their_names(self.config).items():
            values = self.tensors[theirs]
            values = np.ascontiguousarray(values.T if name in TRANSPOSED else values, np.float32)
            if not np.isfinite(values).all():
                raise UserError(
                    f"{self.paths[0].parent}: the parameters must be finite numbers, and {theirs} has others: the file was altered, or its "
                    "training had diverged. Use another model"
                )
            if name == "wte":
                padded = np.zeros((self.config.Vp, self.config.C), np.float32)
                padded[: self.config.V] = values
                values = padded
            yield name, layer, values


def open_folder(path):
    """The Folder at a path: all of its tensors have the right names, shapes and types. Raises UserError for anything else."""
    path = Path(path)
    weights = weight_files(path)
    config = read_config(path / CONFIG_FILE)
    tensors = {}
    for file in weights:
        read = read_safetensors if file.suffix == ".safetensors" else _read_torch
        tensors.update({name.removeprefix(PREFIX): values for name, values in read(file).items()})
    _check(path, config, tensors)
    return Folder(config, [path / CONFIG_FILE, *weights], tensors)


def weight_files(path):
    """The Paths of a folder's weights. Raises UserError if there are none, or not all."""
    path = Path(path)
    if not os.path.isfile(path / CONFIG_FILE):
        hint = "; a run's log directory has model_*.bin, which can be given instead" if list(path.glob("model_*.bin")) else ""
        raise UserError(f"{path} must be a Hugging Face folder, with {CONFIG_FILE} and {WEIGHTS[0]}, and has no {CONFIG_FILE}{hint}")
    for name in WEIGHTS:
        if os.path.isfile(path / name):
            return [path / name]
        if os.path.isfile(path / (name + INDEX)):
            files = [path / part for part in files_of_index(path / (name + INDEX))]
            missing = [file.name for file in files if not os.path.isfile(file)]  # nor is one whose name is too long
            if missing:
                raise UserError(
                    f"{path}: {name + INDEX} names {len(files)} files, and {missing[0][:200]} is missing: copy or download it again"
                )
            return files
    raise UserError(f"{path} must have weights, {' or '.join(WEIGHTS)}, and has none: copy or download them again")


def files_of_index(path):
    """The names of the files with weights that an index names, each once. Raises UserError if it is damaged."""
    parts = read_json(path, MAX_INDEX_BYTES).get("weight_map")
    names = sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else []
    if not names or any(os.path.basename(name) != name or not name.endswith((".safetensors", ".bin")) for name in names):
        raise UserError(f"{path} must have a weight_map of tensors to files beside it, and has none: copy or download it again")
    return names


def _read_torch(path):
    """All tensors of a pytorch_model.bin, by name. Only tensors are loaded from the pickle, no code."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} can be read by PyTorch only, which is not installed: pip install torch, or give a model.safetensors"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return {name: _from_torch(tensor, torch) for name, tensor in state.items()}
    except Exception as error:  # a damaged file may raise anything
        raise UserError(
            f"{path} must be a dictionary of tensors that torch.save has written, and is not ({type(error).__name__}): copy or download it again"
        ) from error


def _from_torch(tensor, torch):
    """A view of a tensor's memory. NumPy has no bfloat16 of its own: its bits pass as int16."""
    tensor = tensor.detach()
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _check(path, config, tensors):
    """Raise UserError if the tensors are not those of a GPT-2 of these sizes."""
    expected = dict(their_names(config).values())
    for name, shape in expected.items():
        if name not in tensors:
            raise UserError(
                f"{path}: a GPT-2 with {config} has a tensor {name}, and the weights have none: is {CONFIG_FILE} another model's?"
            )
        values = tensors[name]
        if tuple(values.shape) != tuple(shape):
            raise UserError(f"{path}: {name} must be {tuple(shape)} with {config}, got {values.shape}: is {CONFIG_FILE} another model's?")
        if values.dtype not in _TYPES:
            raise UserError(f"{path}: weights must be float32, float16 or bfloat16, and {name} is {values.dtype}: convert them")
    for name in tensors.keys() - expected.keys():
        if name.startswith(("h.", "wte.", "wpe.", "ln_f.")) and not name.endswith(_MASKS):
            raise UserError(
                f"{path}: a GPT-2 with {config} has no tensor {name[:200]}, and the weights have one: it is another kind of model"
            )
    head = tensors.get(HEAD)
    if head is not None and head is not tensors["wte.weight"] and not np.array_equal(head, tensors["wte.weight"]):
        raise UserError(
            f"{path}: {HEAD} must be equal to wte.weight, as in GPT-2, and is not: this program cannot train an untied output layer"
        )
