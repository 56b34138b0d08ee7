"""06_attention_backward: the gradients of queries, keys and values, with the weights computed again from lse."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import layer_exercise

THREE_CHANNELS = Sizes(B=2, T=3, C=6, NH=2, V=2, Vp=2, OC=1)  # a head has 3 channels, a block 4 threads
FIVE_CHANNELS = Sizes(B=1, T=4, C=5, NH=1, V=2, Vp=2, OC=1)
EIGHT_CHANNELS = Sizes(B=1, T=4, C=8, NH=1, V=2, Vp=2, OC=1)

QUERIES_LOOP, KEYS_LOOP = "    for s in range(t + 1):\n", "    for t in range(s, qkv.shape[1]):\n"


def gradients(a, s, scale=None, pull=lambda datt, delta: datt - delta, pairs=None, spare=0):
    """{"dqkv": (N, 3C)} with a changed scale, a changed factor of att in dscore, other pairs of query and key than those of the triangle,
    or the last channel counted `spare` times more in dscore: for usual mistakes."""
    q, k, v = a["qkv"].reshape(s.B, s.T, 3, s.NH, s.HS).transpose(2, 0, 3, 1, 4)
    dout, out = (a[name].reshape(s.B, s.T, s.NH, s.HS).swapaxes(1, 2) for name in ("dout", "out"))
    scores = q @ k.swapaxes(2, 3) / np.sqrt(s.HS)
    pairs = np.tri(s.T) if pairs is None else pairs
    with np.errstate(over="ignore", invalid="ignore"):  # a score above the diagonal may be far above lse
        att = np.exp(np.where(pairs > 0, scores - a["lse"][..., None], -np.inf))
        twice = spare * (dout[..., -1:] @ v[..., -1:].swapaxes(2, 3) - dout[..., -1:] * out[..., -1:])
        dscore = att * (pull(dout @ v.swapaxes(2, 3), (dout * out).sum(axis=3, keepdims=True)) + twice)
    scale = 1 / np.sqrt(s.HS) if scale is None else scale
    with np.errstate(over="ignore", invalid="ignore"):
        heads = dscore @ k * scale, dscore.swapaxes(2, 3) @ q * scale, att.swapaxes(2, 3) @ dout
    return {"dqkv": np.stack(heads).transpose(1, 3, 0, 2, 4).reshape(s.N, 3 * s.C)}


def in_kernel(kernel, a, s, **changes):
    """gradients() with a mistake in one of the two kernels: "queries", which writes dq, or "keys", which writes dk and dv."""
    right, mistaken = gradients(a, s)["dqkv"], gradients(a, s, **changes)["dqkv"]
    queries, keys = (mistaken, right) if kernel == "queries" else (right, mistaken)
    return {"dqkv": np.concatenate([queries[:, : s.C], keys[:, s.C :]], axis=1)}


def values_from_dscore(a, s):
    """gradients() with dv = Σ_t dscore[t, s] dout[t]."""
    q, k, v = a["qkv"].reshape(s.B, s.T, 3, s.NH, s.HS).transpose(2, 0, 3, 1, 4)
    dout, out = (a[name].reshape(s.B, s.T, s.NH, s.HS).swapaxes(1, 2) for name in ("dout", "out"))
    scores = np.where(np.tri(s.T) > 0, q @ k.swapaxes(2, 3) / np.sqrt(s.HS), -np.inf)
    dscore = np.exp(scores - a["lse"][..., None]) * (dout @ v.swapaxes(2, 3) - (dout * out).sum(axis=3, keepdims=True))
    dv = (dscore.swapaxes(2, 3) @ dout).swapaxes(1, 2).reshape(s.N, s.C)
    return {"dqkv": np.concatenate([gradients(a, s)["dqkv"][:, : 2 * s.C], dv], axis=1)}


def added(a, s, columns):
    """gradients() where some columns were added to what dqkv held, which is NaN."""
    results = gradients(a, s)
    results["dqkv"][:, columns] = np.nan
    return results


def no_delta(datt, delta):
    return datt


def spare_threads(s):
    """Threads of a block that have no channel."""
    return (1 << (s.HS - 1).bit_length()) - s.HS


ADDED = "dqkv is [w]: the check fills it with NaN, and += adds to that. Here a gradient is written, with =."
OUT_FORGOTTEN = "dscore is att (dout · (v[s] - out[t])): a rising weight also takes from all the others, which is what out[t] stands for."
SPARE = "the last channel is counted more than once in a block_sum: a thread without a channel must bring a product with a factor of 0."

EXERCISE = layer_exercise(
    function="attention_backward",
    layers=("attention",),
    sizes=(THREE_CHANNELS, ONES, FIVE_CHANNELS, EIGHT_CHANNELS),
    # Key 0 is looked at by 4 queries: q, dout, out and lse of each, and its own k and v.
    least=Counts(global_reads=18, global_writes=2),
    taken=Counts(global_reads=18, global_writes=2, shared_reads=56, shared_writes=32),
    hints={
        "": (
            "In both loops: two numbers for each pair of query and key, att and dscore, the same in all threads of the block. Each takes a block_sum.",
            "att = exp(block_sum(q * k) * scale - lse[b, h, t]). dscore = att * block_sum(dout_t * (v - out[b, t, h, e])).",
            "For dq: s runs from 0 to t, dq += dscore * k. For dk and dv: t runs from s to T - 1, dk += dscore * q, dv += att * dout_t.",
        ),
        "barrier": (
            "block_sum has barriers: all threads of the block call it equally often, those without a channel too. No `return`, and no call "
            "of it under `if has_channel`.",
        ),
        "error": ("Subtract lse before exp: some scores are in the thousands, and exp of anything above 88.7 is too large for float32.",),
        "race": ("Who writes? Threads without a channel have the last channel as their `e`, which is another thread's to write.",),
        "not written": ("After each loop the threads that have a channel write: dqkv[b, t, QUERY, h, e], or those of KEY and VALUE at s.",),
        "value": (
            "In a row of dqkv come dq of all heads, then dk, then dv: which kernel wrote the wrong element, and is it the only wrong third?",
            "If a head has a spare thread, it must add nothing: in each block_sum one factor of its product is 0. Which one, in your second kernel?",
        ),
    },
    mistakes=(
        Mistake(lambda s, **a: gradients(a, s, pull=no_delta), OUT_FORGOTTEN),
        Mistake(lambda s, **a: in_kernel("queries", a, s, pull=no_delta), "In the first kernel: " + OUT_FORGOTTEN),
        Mistake(lambda s, **a: in_kernel("keys", a, s, pull=no_delta), "In the second kernel: " + OUT_FORGOTTEN),
        Mistake(lambda s, **a: gradients(a, s, pull=lambda datt, delta: datt + delta), "A sign: it is v[s] minus out[t]."),
        Mistake(lambda s, **a: gradients(a, s, scale=1), "dq and dk lack the scale, 1 / sqrt(HS)."),
        Mistake(lambda s, **a: in_kernel("queries", a, s, scale=1), "dq lacks the scale, 1 / sqrt(HS)."),
        Mistake(lambda s, **a: in_kernel("keys", a, s, scale=1), "dk lacks the scale, 1 / sqrt(HS)."),
        Mistake(lambda s, **a: in_kernel("keys", a, s, pairs=np.tri(s.T, k=-1)), "Query s looks at its own key as well: t begins with s."),
        Mistake(lambda s, **a: in_kernel("keys", a, s, pairs=np.tri(s.T).T),
            "In the second kernel the loop goes over the wrong side of the diagonal: those that look at key s are the queries from s on."),
        Mistake(lambda s, **a: in_kernel("keys", a, s, pairs=np.ones((s.T, s.T))),
            "In the second kernel the loop goes over all queries, also those before s, which do not look at key s."),
        Mistake(lambda s, **a: in_kernel("queries", a, s, pairs=np.ones((s.T, s.T))), "Query t looks at keys after it: s ends with t."),
        Mistake(lambda s, **a: in_kernel("keys", a, s, spare=spare_threads(s)), "In the second kernel " + SPARE),
        Mistake(lambda s, **a: in_kernel("queries", a, s, spare=spare_threads(s)), "In the first kernel " + SPARE),
        Mistake(lambda s, **a: gradients(a, s, scale=1 / s.HS), "dq and dk are multiplied by the scale once."),
        Mistake(lambda s, **a: values_from_dscore(a, s),
            "dv does not go through the softmax: raise v[s], and out[t] rises by ε att[t, s]. So its factor is att, not dscore."),
        Mistake(lambda s, **a: added(a, s, slice(None)), ADDED),
        Mistake(lambda s, **a: added(a, s, slice(s.C)), "In the first kernel: " + ADDED),
        Mistake(lambda s, **a: added(a, s, slice(s.C, None)), "In the second kernel: " + ADDED),
    ),
    wrong=(
        Wrong("out is forgotten", {" - out_t)": ")", "(v - out[b, t, h, e])": "v"}, "value", "a rising weight"),
        Wrong("out is forgotten for the keys", {"(v - out[b, t, h, e])": "v"}, "value", "In the second kernel: dscore"),
        Wrong("the scale twice", {"dq += dscore * k": "dq += dscore * k * scale", "dk += dscore * q": "dk += dscore * q * scale"}, "value", "once"),
        Wrong("the scores without their scale", {"(q * k) * scale": "(q * k)"}, "error", "too large"),
        Wrong("the last query is left out", {KEYS_LOOP: KEYS_LOOP.replace("shape[1]", "shape[1] - 1")}, "value"),
        Wrong("the key does not see its own query", {KEYS_LOOP: KEYS_LOOP.replace("range(s,", "range(s + 1,")}, "value", "its own key"),
        Wrong("the other side of the diagonal", {KEYS_LOOP: "    for t in range(s + 1):\n"}, "value", "wrong side"),
        Wrong("no scale for the keys", {"= dk * scale": "= dk"}, "value", "dk lacks"),
        Wrong("no scale for the queries", {"= dq * scale": "= dq"}, "value", "dq lacks"),
        Wrong("all queries", {KEYS_LOOP: KEYS_LOOP.replace("range(s,", "range(")}, "value", "all queries"),
        Wrong("all keys", {QUERIES_LOOP: "    for s in range(qkv.shape[1]):\n"}, "value", "keys after it"),
        Wrong("the last term only", {"dv += att": "dv = att"}, "value"),
        Wrong("lse of the key's position", {"lse[b, h, t])\n        dscore = att * block_sum(dout_t * (v": "lse[b, h, s])\n        dscore = att * block_sum(dout_t * (v"},
            "value"),
        Wrong("dscore in dv", {"dv += att": "dv += dscore"}, "value", "not dscore"),
        Wrong("dq is added", {"QUERY, h, e] = dq": "QUERY, h, e] += dq"}, "value", "In the first kernel: dqkv is"),
        Wrong("spare threads bring their channel", {"        dout_t = dout[b, t, h, e] if has_channel else ZERO": "        dout_t = dout[b, t, h, e]"},
            "value", "counted more than once"),
        Wrong("spare threads leave", {QUERIES_LOOP: "    if not has_channel:\n        return\n" + QUERIES_LOOP}, "barrier", "equally often"),
        Wrong("exp before the subtraction", {"math.exp(block_sum(q * k) * scale - lse_t)": "math.exp(block_sum(q * k) * scale) / math.exp(lse_t)"},
            "error", "lse"),
        Wrong("no scale", {"= dq * scale": "= dq", "= dk * scale": "= dk"}, "value", "1 / sqrt(HS)"),
        Wrong("spare threads write", {"    if has_channel:\n        dqkv[b, s": "    if True:\n        dqkv[b, s"}, "race", "last channel"),
        Wrong("the keys are never written", {"    if has_channel:\n        dqkv[b, s, KEY": "    if False:\n        dqkv[b, s, KEY"}, "not written", "After each loop"),
        Wrong("a float64", {"dq += dscore * k": "dq += 1.0 * dscore * k"}, "float64"),
    ),
)  # fmt: skip
