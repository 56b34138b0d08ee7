"""The two tokenizers, both a `tiktoken.Encoding`, so the rest of the program need not know which is in use.

bytes   256 tokens, the bytes in order, then end-of-text: nothing to download, small enough for a laptop
gpt2    50,256 byte-pair tokens, then end-of-text: GPT-2's own (Radford et al. 2019, section 2.2)

End-of-text (`encoding.eot_token`) begins every document, and sampling starts from it.
"""

import tiktoken

from gpt2_numba.config import GPT2_VOCAB_SIZE
from gpt2_numba.errors import UserError

END_OF_TEXT = "<|endoftext|>"
BYTE_VOCAB_SIZE = 257


def byte_encoding():
    """Return the byte tokenizer: token i is byte i, 256 is end-of-text, n_vocab is 257."""
    return tiktoken.Encoding(
        name="bytes",
        # tiktoken first splits text into pieces, then merges within a piece. Here nothing merges, so any split is right;
        # short pieces keep its search for merges short.
        pat_str=r"(?s:.{1,32})",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={END_OF_TEXT: 256},
        explicit_n_vocab=BYTE_VOCAB_SIZE,
    )


def gpt2_encoding():
    """Return GPT-2's tokenizer: n_vocab 50,257, end-of-text 50,256.

    tiktoken downloads its vocabulary (1.5 MB) once and keeps it in TIKTOKEN_CACHE_DIR. Raises UserError if it can be neither found there
    nor downloaded.
    """
    try:
        return tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network (requests' errors are OSErrors), or a damaged download
        raise UserError(
            f"the GPT-2 tokenizer needs its vocabulary, which could not be loaded ({type(error).__name__}). Go online "
            "once, or set TIKTOKEN_CACHE_DIR to a directory with tiktoken's files, or use the byte tokenizer"
        ) from error


def encoding_for_vocab(vocab_size):
    """Return the tokenizer of a model with `vocab_size` tokens: bytes for 257, gpt2 for 50,257, None for any other.

    Raises UserError as `gpt2_encoding` does.
    """
    if vocab_size == BYTE_VOCAB_SIZE:
        return byte_encoding()
    if vocab_size == GPT2_VOCAB_SIZE:
        return gpt2_encoding()
    return None
