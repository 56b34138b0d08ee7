"""Softmax and cross-entropy: the losses, and the gradients that take the logits' place."""

import math

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.sizes import tokens_of
from gpt2_numba.layer_checks.tolerances import SMALLEST, UNIT, summation_error
from gpt2_numba.layers import classifier
from gpt2_numba.layers.classifier import classifier_forward, classifier_forward_backward


def reference_rows(s, normal):
    """Rows of the NumPy reference against central differences or the definition."""
    logits, targets, dloss = 3 * normal((s.N, s.Vp)), tokens_of(s).reshape(-1), 0.37
    losses, losses_of_backward, dlogits = np.full(s.N, np.nan), np.full(s.N, np.nan), logits.copy()
    classifier_forward_backward(losses_of_backward, dlogits, targets, dloss, s.V)

    def forward():
        classifier_forward(losses, logits, targets, s.V)

    forward()
    expected = np.array([math.log(sum(math.exp(x) for x in row[: s.V])) - row[t] for row, t in zip(logits, targets)])
    rounding = 8 * 2.0**-53 * np.abs(logits).max()  # of a handful of operations on numbers of this size, in float64
    yield compare("classifier", "losses", losses, expected, rounding)
    yield compare("classifier", "losses again", losses_of_backward, expected, rounding)
    yield from check_gradients("classifier", forward, losses, np.full(s.N, dloss), {"dlogits": (logits, 0, dlogits)})


def kernel_calls(s, normal, storage):
    """Yield the Calls of this layer's launchers, each with the bounds of its errors."""
    logits, targets = 3 * normal(s.N, s.Vp), tokens_of(s).reshape(-1)
    logits[0] *= 16  # some beyond where exp overflows
    dloss = float(np.float32(0.37))

    def loss_errors(before):
        used = before.logits[:, : s.V]
        largest = used.max(axis=1)
        spread = largest - np.minimum(used.min(axis=1), largest)
        # Terms: exp of a rounded difference. Their sum: a thread's share of eight at a time, then what joins the threads.
        threads = min(classifier.THREADS, classifier.TRAINING_THREADS)
        relative = UNIT * (4 + np.minimum(spread, 20)) + summation_error(s.V / threads + 18, 1.0)
        log_total = np.log(np.exp(used - largest[:, None]).sum(axis=1))
        at_target = used[np.arange(s.N), targets]
        return relative, relative + 4 * UNIT * (1 + log_total + np.abs(largest) + np.abs(at_target))

    def backward_errors(after, before, storage):
        relative, losses = loss_errors(before)
        used = before.logits[:, : s.V]
        gradients = np.abs(after.logits)
        gradients[np.arange(s.N), targets] += dloss  # p dloss cancels against dloss
        distance = np.zeros_like(gradients)
        distance[:, : s.V] = used.max(axis=1, keepdims=True) - used
        bound = gradients * (relative[:, None] + UNIT * (6 + distance)) + dloss * SMALLEST
        bound[:, s.V :] = 0  # of the padding: zero, exactly
        return {"losses": losses, "logits": bound}

    calls = (
        Call(
            "classifier forward",
            dict(losses=written(s.N, kind="f32"), logits=read(logits), targets=read(targets, "i32")),
            lambda a: classifier_forward(a.losses, a.logits, a.targets, s.V),
            lambda after, before, storage: {"losses": loss_errors(before)[1]},
        ),
        Call(
            "classifier forward_backward",
            dict(losses=written(s.N, kind="f32"), logits=changed(logits), targets=read(targets, "i32")),
            lambda a: classifier_forward_backward(a.losses, a.logits, a.targets, dloss, s.V),
            backward_errors,
        ),
    )
    yield from calls
