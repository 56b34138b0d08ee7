"""config.json, the sizes of a GPT2LMHeadModel and what else transformers lets a user choose: what of it must be as in GPT-2, and is refused
otherwise. A field that is absent has transformers' default.
"""

import json

from gpt2_numba.config import GPT2Config, parse_descriptor
from gpt2_numba.data.regular_files import open_regular
from gpt2_numba.errors import UserError

MAX_BYTES = 1 << 20
MAX_INDEX_BYTES = 100 << 20

_SIZES = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}
_EPSILON = 1e-5  # layers/layernorm.py's

# field -> the values that mean GPT-2's arithmetic, transformers' default first. The three GELUs are the same formula.
_AS_IN_GPT2 = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "layer_norm_epsilon": (_EPSILON,),
    "tie_word_embeddings": (True,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def read_config(path):
    """The GPT2Config of the config.json at `path`. Raises UserError, naming the field, for what is not a GPT-2."""
    fields = read_json(path)
    sizes = {name: fields.get(name, default) for name, default in _SIZES.items()}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UserError(f"{path}: {name} must be a positive integer, got {_short(size)}")
    L, NH, C, max_T, V = sizes.values()
    for name, values in (_AS_IN_GPT2 | {"n_inner": (None, 4 * C)}).items():
        found = fields.get(name, values[0])
        if not any(found == value and isinstance(found, bool) == isinstance(value, bool) for value in values):
            allowed = " or ".join(json.dumps(value) for value in values)
            raise UserError(f"{path}: {name} must be {allowed}, as in GPT-2, got {_short(found)}: this program cannot train such a model")
    try:
        return parse_descriptor(f"L={L},NH={NH},C={C},T={max_T},V={V}")  # it checks which sizes are compatible
    except UserError as error:
        raise UserError(f"{path}: n_layer (L), n_head (NH), n_embd (C), n_positions (T) and vocab_size (V) do not fit: {error}") from error


def config_fields(config: GPT2Config, dtype, end_of_text):
    """The contents of config.json, a dictionary. dtype: "float32" or "bfloat16", the files'. end_of_text: a token, or None."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.L,
        "n_head": config.NH,
        "n_embd": config.C,
        "n_positions": config.max_T,
        "n_ctx": config.max_T,
        "n_inner": None,
        "vocab_size": config.V,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": _EPSILON,
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "attn_pdrop": 0.0,  # trained without dropout
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def generation_fields(end_of_text):
    """The contents of generation_config.json, a dictionary. end_of_text: a token, or None."""
    return {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": end_of_text}


def read_json(path, max_bytes=MAX_BYTES):
    """The dictionary in a JSON file. Raises UserError if there is none."""
    try:
        with open_regular(path) as file:
            text = file.read(max_bytes + 1)
        if len(text) > max_bytes:
            raise ValueError(f"more than {max_bytes} bytes")
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("no dictionary")
        return fields
    except OSError as error:
        raise UserError(f"{path} must be a file that can be read, and is not: {error.strerror}. Check the folder") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} must be a dictionary in JSON, and is not ({type(error).__name__}): copy or download it again") from error


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
