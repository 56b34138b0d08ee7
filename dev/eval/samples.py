"""The texts that EleutherAI's harness has scored, as it logs them (--log_samples), and their log-likelihoods by this package."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2_numba.data.evaluation.answers import Answers
from gpt2_numba.data.evaluation.multiple_choice import Example
from gpt2_numba.data.tokenizers import encode, encoding_for_vocab
from gpt2_numba.errors import UserError
from gpt2_numba.evaluate import evaluate_questions
from gpt2_numba.evaluation_model import EvaluationModel
from gpt2_numba.gpu.backend import real_gpu
from gpt2_numba.named_model import open_source
from gpt2_numba.options import Options


class Sample(NamedTuple):
    """A text whose log-likelihood, in nats, is that of the continuation after the context."""

    context: str
    continuation: str
    log_likelihood: float


def read_samples(path):
    """The Samples of a samples_*.jsonl. Raises UserError if it has other requests than log-likelihoods."""
    samples = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for arguments, responses in zip(row["arguments"].values(), row["resps"]):
            try:
                samples.append(Sample(arguments["arg_0"], arguments["arg_1"], float(responses[0][0])))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}: only tasks of the kind loglikelihood and multiple_choice can be compared") from error
    return samples


def log_likelihoods(model, pairs):
    """Log-likelihoods, nats, of pairs (context, continuation) of texts by the model that `model` names, float32: (pairs,) float64.

    Tokenized as the harness does: blanks at the end of a context go to the continuation, and both are tokenized together. A pair that is
    longer than the model's context loses its first tokens.
    """
    source = open_source(str(model))
    encoding = encoding_for_vocab(source.config.V)
    if encoding is None:
        raise UserError(f"{model}: no tokenizer is known for a vocabulary of {source.config.V}")
    evaluation = EvaluationModel(source.config, source.config.max_T, Options(device="gpu" if real_gpu() else "cpu", tf32=False))
    source.load(evaluation)
    answers = Answers([Example(0, *_tokens(encoding, context, text, source.config.max_T)) for context, text in pairs])
    evaluate_questions(evaluation, answers, "comparing")
    return -answers.nats


def _tokens(encoding, context, text, T):
    """(context, [continuation]) as tokens."""
    blanks = len(context) - len(context.rstrip())
    if blanks:
        context, text = context[:-blanks], context[-blanks:] + text
    first = encode(encoding, context)
    whole = encode(encoding, context + text) if context else [encoding.eot_token, *encode(encoding, text)]
    given = len(first) if context else 1
    dropped = max(0, len(whole) - (T + 1))
    return np.array(whole[dropped:given]), [np.array(whole[given:])]
