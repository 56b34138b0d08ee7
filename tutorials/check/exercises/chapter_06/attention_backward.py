"""06_attention_backward: the gradients of queries, keys and values, with the weights computed again from lse."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import layer_exercise

THREE_CHANNELS = Sizes(B=2, T=3, C=6, NH=2, V=2, Vp=2, OC=1)  # a head has 3 channels, a block 4 threads
FIVE_CHANNELS = Sizes(B=1, T=4, C=5, NH=1, V=2, Vp=2, OC=1)
EIGHT_CHANNELS = Sizes(B=1, T=4, C=8, NH=1, V=2, Vp=2, OC=1)

QUERIES_LOOP, KEYS_LOOP = "    for s in range(t + 1):\n", "    for t in range(s, qkv.shape[1]):\n"


def gradients(a, s, scale=None, pull=lambda datt, delta: datt - delta):
    """{"dqkv": (N, 3C)} with a changed scale, or a changed factor of att in dscore: for usual mistakes."""
    q, k, v = a["qkv"].reshape(s.B, s.T, 3, s.NH, s.HS).transpose(2, 0, 3, 1, 4)
    dout, out = (a[name].reshape(s.B, s.T, s.NH, s.HS).swapaxes(1, 2) for name in ("dout", "out"))
    scores = q @ k.swapaxes(2, 3) / np.sqrt(s.HS)
    att = np.exp(np.where(np.tri(s.T, dtype=bool), scores - a["lse"][..., None], -np.inf))
    dscore = att * pull(dout @ v.swapaxes(2, 3), (dout * out).sum(axis=3, keepdims=True))
    scale = 1 / np.sqrt(s.HS) if scale is None else scale
    heads = dscore @ k * scale, dscore.swapaxes(2, 3) @ q * scale, att.swapaxes(2, 3) @ dout
    return {"dqkv": np.stack(heads).transpose(1, 3, 0, 2, 4).reshape(s.N, 3 * s.C)}


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
        Mistake(lambda s, **a: gradients(a, s, pull=lambda datt, delta: datt),
            "dscore is att (dout · (v[s] - out[t])): a rising weight also takes from all the others, which is what out[t] stands for."),
        Mistake(lambda s, **a: gradients(a, s, pull=lambda datt, delta: datt + delta), "A sign: it is v[s] minus out[t]."),
        Mistake(lambda s, **a: gradients(a, s, scale=1), "dq and dk lack the scale, 1 / sqrt(HS)."),
        Mistake(lambda s, **a: gradients(a, s, scale=1 / s.HS), "dq and dk are multiplied by the scale once."),
    ),
    wrong=(
        Wrong("out is forgotten", {" - out_t)": ")", "(v - out[b, t, h, e])": "v"}, "value", "a rising weight"),
        Wrong("out is forgotten for the keys", {"(v - out[b, t, h, e])": "v"}, "value", "only wrong third"),
        Wrong("the scale twice", {"dq += dscore * k": "dq += dscore * k * scale", "dk += dscore * q": "dk += dscore * q * scale"}, "value", "once"),
        Wrong("the scores without their scale", {"(q * k) * scale": "(q * k)"}, "error", "too large"),
        Wrong("the last query is left out", {KEYS_LOOP: KEYS_LOOP.replace("shape[1]", "shape[1] - 1")}, "value"),
        Wrong("the key does not see its own query", {KEYS_LOOP: KEYS_LOOP.replace("range(s,", "range(s + 1,")}, "value"),
        Wrong("all queries", {KEYS_LOOP: KEYS_LOOP.replace("range(s,", "range(")}, "value"),
        Wrong("all keys", {QUERIES_LOOP: "    for s in range(qkv.shape[1]):\n"}, "value"),
        Wrong("the last term only", {"dv += att": "dv = att"}, "value"),
        Wrong("lse of the key's position", {"lse[b, h, t])\n        dscore = att * block_sum(dout_t * (v": "lse[b, h, s])\n        dscore = att * block_sum(dout_t * (v"},
            "value"),
        Wrong("spare threads bring their channel", {"        dout_t = dout[b, t, h, e] if has_channel else ZERO": "        dout_t = dout[b, t, h, e]"},
            "value"),
        Wrong("spare threads leave", {QUERIES_LOOP: "    if not has_channel:\n        return\n" + QUERIES_LOOP}, "barrier", "equally often"),
        Wrong("exp before the subtraction", {"math.exp(block_sum(q * k) * scale - lse_t)": "math.exp(block_sum(q * k) * scale) / math.exp(lse_t)"},
            "error", "lse"),
        Wrong("no scale", {"= dq * scale": "= dq", "= dk * scale": "= dk"}, "value", "1 / sqrt(HS)"),
        Wrong("spare threads write", {"    if has_channel:\n        dqkv[b, s": "    if True:\n        dqkv[b, s"}, "race", "last channel"),
        Wrong("the keys are never written", {"    if has_channel:\n        dqkv[b, s, KEY": "    if False:\n        dqkv[b, s, KEY"}, "not written", "After each loop"),
        Wrong("a float64", {"dq += dscore * k": "dq += 1.0 * dscore * k"}, "float64"),
    ),
)  # fmt: skip
