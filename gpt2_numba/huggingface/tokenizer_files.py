"""A tokenizer as transformers reads it, made from tiktoken's: the same text gives the same ids.

Both merge pairs of tokens, beginning with the bytes. tiktoken knows the bytes of each token, and a pair is merged the earlier the smaller
the resulting id; Hugging Face wants the list of pairs. Each token is the merger of the two that are left when its bytes are merged as far as
smaller ids go. Files hold text, so each byte is written as a character: the visible ones of Latin-1 as themselves, the others as those
from U+0100 on (Radford et al. 2019, bytes_to_unicode).

A tokenizer without mergers, such as the one whose tokens are the bytes, is one of the same kind.
"""

import json

END_OF_TEXT = "<|endoftext|>"

_VISIBLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _VISIBLE]
CHARACTERS = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(256 + index) for index, byte in enumerate(_OTHERS)}


def tokenizer_files(encoding, max_T):
    """The files of a tokenizer: name -> text.

    encoding  a tiktoken.Encoding whose only special token is end-of-text        max_T  longest context of the model, tokens
    """
    ranks = encoding._mergeable_ranks  # tiktoken has no public access to it
    vocabulary = {_letters(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}
    vocabulary[END_OF_TEXT] = encoding.eot_token
    merges = [" ".join(map(_letters, pair)) for pair in merged_pairs(ranks)]
    texts = {name: END_OF_TEXT for name in ("bos_token", "eos_token", "unk_token")}
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": max_T, "add_prefix_space": False, "add_bos_token": False}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "tokenizer_config.json": json.dumps(settings | {"clean_up_tokenization_spaces": False, "errors": "replace"} | texts, indent=2)
        + "\n",
        "special_tokens_map.json": json.dumps(texts, indent=2) + "\n",
        "tokenizer.json": json.dumps(_fast_tokenizer(vocabulary, merges), ensure_ascii=False),
    }


def merged_pairs(ranks):
    """The pairs of tokens whose merger is a token, in the order in which they are merged. ranks: bytes of a token -> its id."""
    longer = sorted((rank, token) for token, rank in ranks.items() if len(token) > 1)
    return [_parts(token, rank, ranks) for rank, token in longer]


def _parts(token, rank, ranks):
    """The two parts of a token, after all mergers into ids below `rank`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        candidates = [(ranks.get(left + right, rank), i) for i, (left, right) in enumerate(zip(parts, parts[1:]))]
        best, i = min(candidates)
        if best >= rank:
            raise ValueError(f"token {rank}, {token!r}, is not the merger of two others")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return tuple(parts)


def _letters(token):
    return "".join(CHARACTERS[byte] for byte in token)


def _fast_tokenizer(vocabulary, merges):
    """tokenizer.json: all of it in one file, for the library `tokenizers`."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"id": vocabulary[END_OF_TEXT], "content": END_OF_TEXT, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special | {"normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": merges,
        },
    }  # fmt: skip
