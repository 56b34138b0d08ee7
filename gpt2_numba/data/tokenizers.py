"""The two tokenizers, both a `tiktoken.Encoding`, so the rest of the program need not know which is in use.

bytes   256 tokens, the bytes in order, then end-of-text: nothing to download, small enough for a laptop
gpt2    50,256 byte-pair tokens, then end-of-text: GPT-2's own (Radford et al. 2019, section 2.2)

End-of-text (`encoding.eot_token`) begins every document, and sampling starts from it.
"""

import concurrent.futures
import threading

import numpy as np
import tiktoken

from gpt2_numba.config import GPT2_VOCAB_SIZE
from gpt2_numba.errors import UserError

END_OF_TEXT = "<|endoftext|>"
BYTE_VOCAB_SIZE = 257

# How long the vocabulary of GPT-2 may take to load, in seconds: a network that drops packets would keep the download waiting for ever.
PATIENCE = 60  # where nothing can be done without it
PATIENCE_FOR_SAMPLES = 5  # where token numbers do as well as text

BLOCK = 100_000  # characters; tiktoken panics at a million of whitespace


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


def gpt2_encoding(patience=PATIENCE):
    """Return GPT-2's tokenizer: n_vocab 50,257, end-of-text 50,256.

    tiktoken downloads its vocabulary (1.5 MB) once and keeps it in TIKTOKEN_CACHE_DIR. Raises UserError if it can be neither found there
    nor downloaded within `patience` seconds.
    """
    try:
        return _within(patience, lambda: tiktoken.get_encoding("gpt2"))
    except concurrent.futures.TimeoutError as error:
        raise _no_vocabulary(f"it did not come within {patience} seconds") from error
    except (OSError, ValueError) as error:  # no network (requests' errors are OSErrors), or a damaged download
        raise _no_vocabulary(type(error).__name__) from error


ENCODINGS = {"bytes": byte_encoding, "gpt2": gpt2_encoding}
VOCAB_SIZES = {"bytes": BYTE_VOCAB_SIZE, "gpt2": GPT2_VOCAB_SIZE}


def encoding_for_vocab(vocab_size):
    """Return the tokenizer of a model with `vocab_size` tokens: bytes for 257, gpt2 for 50,257, None for any other.

    Raises UserError as `gpt2_encoding` does, after a few seconds at most.
    """
    if vocab_size == BYTE_VOCAB_SIZE:
        return byte_encoding()
    if vocab_size == GPT2_VOCAB_SIZE:
        return gpt2_encoding(PATIENCE_FOR_SAMPLES)
    return None


def encode(encoding, text):
    """Return the token ids of `text`, a list of int. "<|endoftext|>" in a text is plain text.

    tiktoken fails for a million whitespace characters in a row, so a text with very many is encoded in pieces, and the ids are those of the
    pieces, one after another: a piece ends after each block (characters 100,000 * i to 100,000 * (i + 1)) that is nothing but whitespace.
    """
    return [token for piece in _pieces(text) for token in encoding.encode_ordinary(piece)]


def encode_to_array(encoding, text):
    """Return the token ids of `text`, as `encode` does, in a uint16 array."""
    if encoding.name == "bytes":  # token i is byte i
        return np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.uint16)
    return np.array(encode(encoding, text), dtype=np.uint16)


def _pieces(text):
    """Yield `text` in pieces: one, unless a whole block is whitespace. In a piece whitespace is shorter than two blocks."""
    start = 0
    for end in range(BLOCK, len(text), BLOCK):
        if text[end - BLOCK : end].isspace():
            yield text[start:end]
            start = end
    yield text[start:]


def _within(seconds, work):
    """Return work(), or raise concurrent.futures.TimeoutError if it takes longer; it then never delays the end of the program."""
    result = concurrent.futures.Future()

    def run():
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="vocabulary", daemon=True).start()
    return result.result(timeout=seconds)


def _no_vocabulary(reason):
    return UserError(
        f"the GPT-2 tokenizer needs its vocabulary, which could not be loaded ({reason}). Go online once, or set TIKTOKEN_CACHE_DIR to a "
        "directory with tiktoken's files, or use the byte tokenizer"
    )
