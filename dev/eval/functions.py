"""How often is what a model writes valid Python? It completes functions that it has not seen, from their first line and docstring.

    python -m dev.eval.functions log_python/DONE_* --shards 'data/python_val_*.bin'

The functions are from the validation shards of python -m gpt2_numba.data python: the first one of each file that stands by itself and has a
docstring and a few lines. A completion ends where the next line would not belong to the function, or after --tokens, and then what is left
of its last line is dropped. It counts as valid if Python's parser takes it and it has a statement after the docstring. What the statements
do is not judged. MODEL is a checkpoint, a log directory, or a model file; of several each gets a line. Needs GPT-2's tokenizer, or bytes.
"""

import ast
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2_numba.command_line import Parser, exit_code, main_program, user_path
from gpt2_numba.data.token_shards import Shard, find_shards
from gpt2_numba.data.tokenizers import encode, encoding_for_vocab
from gpt2_numba.errors import UserError
from gpt2_numba.inference import Decoder, ForwardModel, generate
from gpt2_numba.named_model import add_model_options, choose_options, open_source
from gpt2_numba.progress import Progress
from gpt2_numba.sample import make_choosers

LINES = range(2, 13)  # of a function after its docstring
PROMPT_TOKENS = 200  # longer ones are left out
SHOWN = 8  # completions of each model that --json keeps


class Function(NamedTuple):
    """prompt: the source from `def` to the end of the docstring. rest: what follows it, as its author wrote it."""

    prompt: str
    rest: str


def functions_in(source):
    """The Functions of a Python file that stand by themselves, with a docstring and LINES after it."""
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.split("\n")
    for node in module.body:
        if not isinstance(node, ast.FunctionDef) or ast.get_docstring(node) is None:
            continue
        end = node.body[0].end_lineno
        if node.end_lineno - end in LINES:
            yield Function("\n".join(lines[node.lineno - 1 : end]), "\n" + "\n".join(lines[end : node.end_lineno]))


def functions_of_shards(pattern, encoding, count):
    """The first Function of each document, with a prompt of at most PROMPT_TOKENS, `count` of them, spread over the shards."""
    found = {}
    for path in find_shards(pattern):
        tokens = np.asarray(Shard(path)[:])
        for document in np.split(tokens, np.flatnonzero(tokens == encoding.eot_token)):
            for function in functions_in(encoding.decode(document[1:].tolist())):
                if len(encode(encoding, function.prompt)) <= PROMPT_TOKENS:
                    found.setdefault(function.prompt, function)
                    break
    if not found:
        raise UserError(f"{pattern}: holds no function with a docstring: give shards made by python -m gpt2_numba.data python")
    functions = list(found.values())
    return [functions[i * len(functions) // count] for i in range(count)] if count < len(functions) else functions


def body_of(text):
    """What belongs to a function of the text after its docstring: up to the first line that is not indented."""
    first, *lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.strip() and not line[0].isspace():
            return "\n".join([first, *lines[:number]]).rstrip()
    return "\n".join([first, *lines[:-1]]).rstrip()  # it was cut: the last line is not whole


def is_valid(function_source):
    """Whether this is one function with a statement after its docstring."""
    try:
        module = ast.parse(function_source)
    except (SyntaxError, ValueError, RecursionError):
        return False
    return len(module.body) == 1 and isinstance(module.body[0], ast.FunctionDef) and len(module.body[0].body) > 1


def complete(decoder, encoding, prompt, settings):
    """The texts that the model writes after a prompt, one for each of the decoder's sequences."""
    choosers = make_choosers(encoding.n_vocab, settings.seed, decoder.B, temperature=settings.temperature, top_k=50)
    texts = [[] for _ in choosers]
    for new in generate(decoder, [encoding.eot_token, *encode(encoding, prompt)], settings.tokens, choosers, encoding.eot_token):
        for text, token in zip(texts, new):
            if token not in (None, encoding.eot_token):
                text.append(token)
    return [encoding.decode(text) for text in texts]


def judge(name, functions, encoding, settings):
    """Complete all functions with a model. Returns {model, valid, count, completions}."""
    source = open_source(name)
    options = choose_options(settings, source)
    T = min(source.config.max_T, PROMPT_TOKENS + 1 + settings.tokens)
    model = ForwardModel(source.config, settings.samples, T, options)
    source.load(model)
    decoder = Decoder(model, settings.samples)
    completions = []
    with Progress(Path(name).name, len(functions), "functions") as progress:
        for function in functions:
            for text in complete(decoder, encoding, function.prompt, settings):
                whole = function.prompt + body_of(text)
                completions.append({"text": whole, "valid": is_valid(whole)})
            progress.advance(1)
    valid = sum(completion["valid"] for completion in completions)
    return {"model": name, "valid": valid, "count": len(completions), "completions": completions[:: settings.samples][:SHOWN]}


def parse(argv):
    """The settings of a command line."""
    parser = Parser(prog="python -m dev.eval.functions", doc=__doc__, allow_abbrev=False)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="log directory, checkpoint, model file or Hugging Face folder")
    parser.add_argument("--shards", metavar="PATTERN", required=True, help="validation shards of Python sources")
    parser.add_argument("--count", metavar="N", type=int, default=64, help="functions (default 64)")
    parser.add_argument("--samples", metavar="N", type=int, default=4, help="completions of each (default 4)")
    parser.add_argument("--tokens", metavar="N", type=int, default=128, help="of a completion, at most (default 128)")
    parser.add_argument("--temperature", metavar="X", type=float, default=0.8, help="default 0.8; the 50 likeliest tokens remain")
    parser.add_argument("--seed", metavar="S", type=int, default=1337, help="of the random choices (default 1337)")
    add_model_options(parser.add_argument)
    parser.add_argument("--json", metavar="FILE", type=user_path, help="also write the results and some completions to FILE")
    return parser.parse_args(argv)


def run(argv):
    """Judge the models of the command line."""
    settings = parse(argv)
    encoding = encoding_for_vocab(open_source(settings.models[0]).config.V)
    if encoding is None:
        raise UserError(f"{settings.models[0]}: no tokenizer is known for its vocabulary: give a model of GPT-2's tokens, or of bytes")
    functions = functions_of_shards(settings.shards, encoding, settings.count)
    print(f"{len(functions)} functions, {settings.samples} completions each, temperature {settings.temperature:g}")
    results = []
    for name in settings.models:
        results.append(judge(name, functions, encoding, settings))
        print(f"  {results[-1]['valid'] / results[-1]['count']:6.1%} valid    {name}", flush=True)
    if settings.json:
        Path(settings.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def main(argv):
    """Run the command line. Returns the exit code: 0, or 2 for a mistake of the user's, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
