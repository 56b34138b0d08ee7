"""Softmax and cross-entropy: the losses, and the gradients that overwrite the logits."""

import math

import numpy as np

from gpt2_numba.layer_checks.calls import Call, changed, read, textbook_call, written
from gpt2_numba.layer_checks.differences import check_gradients
from gpt2_numba.layer_checks.rows import compare
from gpt2_numba.layer_checks.sizes import awkward_tokens
from gpt2_numba.layer_checks.tolerances import SMALLEST, UNIT, summation_error
from gpt2_numba.layers import classifier as textbook
from gpt2_numba.layers.fast import classifier as fast

DLOSS = float(np.float32(0.37))


def reference_rows(s, normal):
    """Yield Rows that check the NumPy reference against central differences and the definition."""
    logits, targets = 3 * normal((s.N, s.Vp)), awkward_tokens(s).reshape(-1)
    losses, backward_losses, dlogits = np.full(s.N, np.nan), np.full(s.N, np.nan), logits.copy()
    textbook.classifier_forward_backward(backward_losses, dlogits, targets, DLOSS, s.V)

    def forward():
        textbook.classifier_forward(losses, logits, targets, s.V)

    forward()
    expected = np.array([math.log(sum(math.exp(x) for x in row[: s.V])) - row[t] for row, t in zip(logits, targets)])
    rounding = 8 * 2.0**-53 * np.abs(logits).max()  # a handful of operations on values of this size, in float64
    yield compare("classifier", "losses", losses, expected, rounding)
    yield compare("classifier", "losses of forward_backward", backward_losses, expected, rounding)
    yield from check_gradients("classifier", forward, losses, np.full(s.N, DLOSS), {"dlogits": (logits, 0, dlogits)})


def inputs(s, normal):
    """Logits, some so large that exp overflows, others so low that it vanishes, and targets."""
    logits = 3 * normal(s.N, s.Vp)
    logits[0] *= 16
    logits[1:][-1:] -= 300
    return logits, awkward_tokens(s).reshape(-1)


def loss_errors(before, V, additions):
    """The relative error of a row's sum of exponentials, and the bounds for the losses.

    The terms are exp of a rounded difference. additions: the longest chain of additions that a term passes through.
    """
    used, targets = before.logits[:, :V], before.targets
    largest = used.max(axis=1)
    spread = largest - np.minimum(used.min(axis=1), largest)
    relative = UNIT * (4 + np.minimum(spread, 20)) + summation_error(additions, 1.0)
    log_total = np.log(np.exp(used - largest[:, None]).sum(axis=1))
    at_target = used[np.arange(len(used)), targets]
    return relative, relative + 4 * UNIT * (1 + log_total + np.abs(largest) + np.abs(at_target))


def backward_errors(after, before, V, additions, dloss):
    """Bounds for the losses and for the gradients, which have overwritten the logits."""
    relative, losses = loss_errors(before, V, additions)
    used, gradients = before.logits[:, :V], np.abs(after.logits)
    gradients[np.arange(len(used)), before.targets] += dloss  # p dloss cancels against dloss
    distance = np.zeros_like(gradients)
    distance[:, :V] = used.max(axis=1, keepdims=True) - used
    bound = gradients * (relative[:, None] + UNIT * (6 + distance)) + dloss * SMALLEST
    bound[:, V:] = 0  # the gradients of the padding are exactly zero
    return {"losses": losses, "logits": bound}


def plain_calls(s, normal, functions):
    """Yield the Calls of the textbook functions in the namespace `functions`, each with its error bounds."""
    logits, targets = inputs(s, normal)
    yield textbook_call(
        functions, textbook, "classifier_forward",
        dict(losses=written(s.N, kind="f32"), logits=read(logits), targets=read(targets, "i32")),
        lambda a: (a.losses, a.logits, a.targets, s.V),
        lambda after, before, storage: {"losses": loss_errors(before, s.V, s.V)[1]},
    )  # fmt: skip
    for name, dloss in (("classifier forward_backward", 1.0), (f"classifier forward_backward, dloss {DLOSS:.2f}", DLOSS)):
        yield textbook_call(
            functions, textbook, "classifier_forward_backward",
            dict(losses=written(s.N, kind="f32"), logits=changed(logits), targets=read(targets, "i32")),
            lambda a, dloss=dloss: (a.losses, a.logits, a.targets, dloss, s.V),
            lambda after, before, storage, dloss=dloss: backward_errors(after, before, s.V, s.V, dloss),
            name,
        )  # fmt: skip


def fast_calls(s, normal, storage):
    """Yield the Calls of the fast launchers, each with its error bounds."""
    logits, targets = inputs(s, normal)
    additions = s.V / min(fast.THREADS, fast.TRAINING_THREADS) + 18  # a thread's share, eight at a time, then the reduction over threads
    yield Call(
        "classifier_forward",
        "classifier forward",
        dict(losses=written(s.N, kind="f32"), logits=read(logits), targets=read(targets, "i32")),
        lambda a: fast.classifier_forward(a.losses, a.logits, a.targets, s.V),
        lambda after, before, storage: {"losses": loss_errors(before, s.V, additions)[1]},
        lambda a: textbook.classifier_forward(a.losses, a.logits, a.targets, s.V),
    )
    yield Call(
        "classifier_forward_backward",
        "classifier forward_backward",
        dict(losses=written(s.N, kind="f32"), logits=changed(logits), targets=read(targets, "i32")),
        lambda a: fast.classifier_forward_backward(a.losses, a.logits, a.targets, DLOSS, s.V),
        lambda after, before, storage: backward_errors(after, before, s.V, additions, DLOSS),
        lambda a: textbook.classifier_forward_backward(a.losses, a.logits, a.targets, DLOSS, s.V),
    )
