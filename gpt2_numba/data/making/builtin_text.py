"""The built-in corpus as text, to be tokenized like any other: `python -m gpt2_numba.data built-in`."""

import numpy as np

from gpt2_numba.data.builtin_corpus import VALIDATION_SHARE, builtin_corpus
from gpt2_numba.data.making.text_parts import Texts
from gpt2_numba.data.tokenizers import byte_encoding


def builtin_parts():
    """The same text as parts (see text_parts.py), for another tokenizer. Whole documents are for validation: those that begin in the last tenth.

    Raises UserError as `builtin_corpus` does.
    """
    corpus = np.concatenate(builtin_corpus())
    begins = np.flatnonzero(corpus == byte_encoding().eot_token)
    # The last document may be cut within a character.
    texts = [part[1:].astype(np.uint8).tobytes().decode("utf-8", "ignore") for part in np.split(corpus, begins)[1:]]
    first = int(np.searchsorted(begins, corpus.size - corpus.size // VALIDATION_SHARE))
    return [Texts("built-in, validation", texts[first:], True), Texts("built-in, training", texts[:first], False)]
