"""GPT-2 as Hugging Face keeps it: a folder with config.json and the weights of a GPT2LMHeadModel, on disk or on the hub.

    read_huggingface    a model's sizes and its parameters, from a folder or from the hub
    folder.py           which files a folder has, and which of their tensors is which of ours
    config_json.py      config.json: what of it must be GPT-2's
    safetensors_file.py the format of the weights
    hub.py              names such as gpt2-xl: Hugging Face's cache, and downloads into it
    tokenizer_files.py  a tokenizer as transformers reads it

gpt2_numba/export.py writes such a folder. Nothing of Hugging Face's need be installed, except PyTorch for an old pytorch_model.bin.
"""

import os

from gpt2_numba.config import parse_descriptor
from gpt2_numba.errors import UserError
from gpt2_numba.huggingface.folder import CONFIG_FILE, open_folder
from gpt2_numba.huggingface.hub import SHORT_NAMES, cached_folder, download_folder, hub_id


def is_huggingface(name):
    """Whether a model's name (-e) is Hugging Face's: a folder, a path that may be one, gpt2 ... gpt2-xl or HUB/ID. Descriptors come first."""
    if name.endswith(".bin"):
        return False
    try:
        parse_descriptor(name)
        return False
    except UserError:
        path = "=" not in name and any(separator in name for separator in {"/", os.sep})  # L=4/2 is a descriptor with a mistake
        return os.path.isdir(name) or path or name in SHORT_NAMES


def read_huggingface(name, report=None):
    """Return (GPT2Config, pieces) of a GPT2LMHeadModel.

    name    a folder; gpt2, gpt2-medium, gpt2-large, gpt2-xl; or HUB/ID. What is not a folder is looked for in Hugging Face's cache and, if
            it is not there, downloaded into it
    report  of a download: called again and again with a text about what is being done
    pieces  an iterator of (name, layer, values) for GPT2.load_pieces: each tensor of each layer once, as a float32 array of our shape; the
            padding of wte is zero. A tensor is read when its turn comes, so the model is never in memory as a whole
    Raises UserError if there is no such model, if it is not a GPT-2, or if its files are damaged; the iterator raises it for numbers that
    are not finite.
    """
    folder = open_folder(_find(name, report))
    return folder.config, folder.pieces()


def huggingface_files(name):
    """The Paths of a model's files, if it is here, as a folder or in the cache; otherwise none. Raises UserError if they are damaged."""
    path = _find_here(name)
    return open_folder(path).paths if path else []


def huggingface_config(name):
    """The GPT2Config of a model that is here, or None. Raises UserError if it is damaged."""
    path = _find_here(name)
    return open_folder(path).config if path else None


def _find_here(name):
    """The folder of a model that need not be downloaded, as a path; None if there is none. A folder of its name goes before the hub's model."""
    if os.path.isdir(name) and (hub_id(name) is None or os.path.exists(os.path.join(name, CONFIG_FILE))):
        return name
    return hub_id(name) and cached_folder(hub_id(name))


def _find(name, report):
    path = _find_here(name)
    if path is None and hub_id(name) is None:
        raise UserError(
            f"a Hugging Face model is a folder, gpt2, gpt2-medium, gpt2-large, gpt2-xl or a name of the hub such as openai-community/gpt2, got "
            f"{name[:200]!r}, and there is no such folder: check the path"
        )
    return path or download_folder(hub_id(name), report)
