"""The sizes of a GPT-2, and descriptors that name them: d12, gpt3:c384, or L=4,NH=4,C=128,T=128,V=257."""

import math
from dataclasses import dataclass

from gpt2_numba.errors import UserError
from gpt2_numba.integers import round_up

GPT2_VOCAB_SIZE = 50257
MAX_LAYERS = 10_000  # far beyond any memory; what is listed layer by layer stays short
VOCAB_PADDING = 128  # the classifier's matrix has a multiple of this many rows, for aligned rows and full tensor core tiles

# depth -> channels, heads. d12 ... d48 are GPT-2's four sizes; the others continue the series as llm.c does.
_GPT2_SIZES = {
    6: (384, 6), 12: (768, 12), 24: (1024, 16), 36: (1280, 20), 48: (1600, 25), 60: (1920, 30), 72: (2880, 30), 84: (3456, 36),
}  # fmt: skip
# channels -> layers, head size: table 2.1 of the GPT-3 paper (arXiv:2005.14165), without its rounding
_GPT3_SIZES = {
    384: (6, 64), 768: (12, 64), 1024: (24, 64), 1536: (24, 96), 2048: (24, 128), 2560: (32, 80), 4096: (32, 128), 12288: (96, 128),
}  # fmt: skip

ONCE = ("wte", "wpe", "lnfw", "lnfb")  # the tensors that exist once; of the others there is one per block
# The others are vectors: biases and LayerNorms, less than 0.1 % of d12's parameters.
MATRICES = ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")

_FREE_FORM = "L=4,NH=4,C=128,T=128,V=257 (layers, heads, channels, longest context, vocabulary)"


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of a model: L layers, NH heads of size HS, C channels, max_T longest context (tokens), V vocabulary size, Vp padded V."""

    L: int
    NH: int
    C: int
    max_T: int
    V: int

    @property
    def Vp(self):
        return round_up(self.V, VOCAB_PADDING)

    @property
    def HS(self):
        return self.C // self.NH

    def __str__(self):
        return f"L={self.L},NH={self.NH},C={self.C},T={self.max_T},V={self.V}"


def parse_descriptor(text, default_T=1024, default_V=GPT2_VOCAB_SIZE):
    """The GPT2Config that a descriptor names.

    text       d6 ... d84 (also gpt2:dX), gpt3:cX, or the free form L=..,NH=..,C=..[,T=..][,V=..]
    default_T  longest context, if the free form omits it; default_V  vocabulary size, unless the free form has one
    Raises UserError for anything else, and for incompatible sizes.
    """
    name = text.strip()
    if "=" in name:
        return _parse_free_form(name, default_T, default_V)
    family, _, size = name.rpartition(":")
    number = _positive(size[1:])
    if family in ("", "gpt2") and size[:1] == "d" and number in _GPT2_SIZES:
        C, NH = _GPT2_SIZES[number]
        return GPT2Config(L=number, NH=NH, C=C, max_T=1024, V=default_V)
    if family == "gpt3" and size[:1] == "c" and number in _GPT3_SIZES:
        L, HS = _GPT3_SIZES[number]
        return GPT2Config(L=L, NH=number // HS, C=number, max_T=2048, V=default_V)
    raise UserError(
        f"unknown model {text[:80]!r}: known are {', '.join(f'd{d}' for d in _GPT2_SIZES)}; "
        f"{', '.join(f'gpt3:c{c}' for c in _GPT3_SIZES)}; or sizes such as {_FREE_FORM}; or FILE.bin, gpt2, a Hugging Face folder"
    )


def _parse_free_form(text, default_T, default_V):
    sizes = {"T": default_T, "V": default_V}
    given = set()
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        size = _positive(value)
        if key not in ("L", "NH", "C", "T", "V") or key in given or size is None:
            raise UserError(
                f"model {text[:80]!r}: cannot read {part.strip()[:80]!r}. Write each size once, as a positive integer: {_FREE_FORM}"
            )
        given.add(key)
        sizes[key] = size
    if sizes.get("L", 0) > MAX_LAYERS:
        raise UserError(f"model {text[:80]!r}: at most {MAX_LAYERS} layers, got {sizes['L']}")
    missing = [key for key in ("L", "NH", "C") if key not in given]
    if missing:
        raise UserError(f"model {text!r}: {', '.join(missing)} missing. Write it as {_FREE_FORM}")
    if sizes["C"] % sizes["NH"]:
        raise UserError(f"model {text!r}: NH must divide C, got C={sizes['C']}, NH={sizes['NH']}")
    if sizes["C"] // sizes["NH"] % 8:
        raise UserError(f"model {text!r}: the head size C / NH must be a multiple of 8 (16-byte loads), got {sizes['C'] // sizes['NH']}")
    return GPT2Config(L=sizes["L"], NH=sizes["NH"], C=sizes["C"], max_T=sizes["T"], V=sizes["V"])


def _positive(text):
    """The positive integer, of at most 18 digits, that the text is, or None."""
    return int(text) or None if text.isdecimal() and len(text) <= 18 else None


def parameter_shapes(config):
    """The 16 parameter tensors, name -> shape, in their order in memory and in llm.c's files. Weights are (out, in)."""
    L, C = config.L, config.C
    return {
        "wte": (config.Vp, C),  # token embedding, also the classifier's matrix
        "wpe": (config.max_T, C),  # position embedding
        "ln1w": (L, C),
        "ln1b": (L, C),
        "qkvw": (L, 3 * C, C),
        "qkvb": (L, 3 * C),
        "attprojw": (L, C, C),
        "attprojb": (L, C),
        "ln2w": (L, C),
        "ln2b": (L, C),
        "fcw": (L, 4 * C, C),
        "fcb": (L, 4 * C),
        "fcprojw": (L, C, 4 * C),
        "fcprojb": (L, C),
        "lnfw": (C,),
        "lnfb": (C,),
    }


def count_parameters(config):
    """The number of elements of the 16 tensors, including the padding of wte."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())
