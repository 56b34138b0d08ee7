"""06_attention_forward: scores, softmax and values in one pass over the keys."""

import numpy as np

from gpt2_numba.layer_checks.sizes import ONES, Sizes
from tutorials.check.exercise import Counts, Mistake, Wrong
from tutorials.check.layer_exercises import layer_exercise

THREE_CHANNELS = Sizes(B=2, T=4, C=6, NH=2, V=2, Vp=2, OC=1)  # a head has 3 channels, a block 4 threads
FIVE_CHANNELS = Sizes(B=1, T=6, C=10, NH=2, V=2, Vp=2, OC=1)
EIGHT_CHANNELS = Sizes(B=1, T=5, C=16, NH=2, V=2, Vp=2, OC=1)

RESCALED_TOTAL = "total = total * rescale + exponential"
RESCALED_VALUES = "weighted = weighted * rescale + exponential * qkv"


def attention(qkv, s, keys=lambda t: t + 1, scale=None, spare=0):
    """{"out": (N, C), "lse": (B, NH, T)} where query t looks at the keys below keys(t), and `spare` threads add the last channel's product
    once more: for usual mistakes."""
    q, k, v = qkv.reshape(s.B, s.T, 3, s.NH, s.HS).transpose(2, 0, 3, 1, 4)
    scores = (q @ k.swapaxes(2, 3) + spare * q[..., -1:] @ k[..., -1:].swapaxes(2, 3)) * (1 / np.sqrt(s.HS) if scale is None else scale)
    visible = np.arange(s.T) < keys(np.arange(s.T))[:, None]
    with np.errstate(all="ignore"):  # a query may have no key
        largest = np.where(visible, scores, -np.inf).max(axis=3, keepdims=True)
        exponentials = np.where(visible, np.exp(scores - largest), 0)
        total = exponentials.sum(axis=3, keepdims=True)
        out, lse = exponentials @ v / total, largest + np.log(total)
    return {"out": out.transpose(0, 2, 1, 3).reshape(s.N, s.C), "lse": lse[..., 0]}


def spare_threads(s):
    """Threads of a block that have no channel."""
    return (1 << (s.HS - 1).bit_length()) - s.HS


def uncorrected(qkv, s, total=False, weighted=False):
    """attention() where the running total, the running sum of values, or both are not corrected when a larger score comes."""
    q, k, v = qkv.reshape(s.B, s.T, 3, s.NH, s.HS).transpose(2, 0, 3, 1, 4)
    scores = np.where(np.tri(s.T, dtype=bool), q @ k.swapaxes(2, 3) / np.sqrt(s.HS), -np.inf)
    running = np.maximum.accumulate(scores, axis=3)  # the largest score up to each key
    corrected, as_added = np.exp(scores - running[..., -1:]), np.exp(scores - running)
    totals = (as_added if total else corrected).sum(axis=3, keepdims=True)
    out, lse = (as_added if weighted else corrected) @ v / totals, running[..., -1:] + np.log(totals)
    return {"out": out.transpose(0, 2, 1, 3).reshape(s.N, s.C), "lse": lse[..., 0]}


def largest_scores(qkv, s):
    """(B, NH, T)."""
    q, k, _ = qkv.reshape(s.B, s.T, 3, s.NH, s.HS).transpose(2, 0, 3, 1, 4)
    return np.where(np.tri(s.T, dtype=bool), q @ k.swapaxes(2, 3) / np.sqrt(s.HS), -np.inf).max(axis=3)


def without_the_largest(qkv, s):
    """attention() with lse = log(total)."""
    results = attention(qkv, s)
    return {"out": results["out"], "lse": results["lse"] - largest_scores(qkv, s)}


def undivided(qkv, s):
    """attention() with out = weighted."""
    results = attention(qkv, s)
    total = np.exp(results["lse"] - largest_scores(qkv, s))  # (B, NH, T)
    return {"out": results["out"] * np.repeat(total.swapaxes(1, 2).reshape(s.N, s.NH), s.HS, axis=1), "lse": results["lse"]}


def without_logarithm(results):
    with np.errstate(over="ignore"):
        return {"out": results["out"], "lse": np.exp(results["lse"])}


EXERCISE = layer_exercise(
    function="attention_forward",
    layers=("attention",),
    sizes=(THREE_CHANNELS, ONES, FIVE_CHANNELS, EIGHT_CHANNELS),
    # The last query has 5 keys: a key, a value and a sum over 8 threads for each.
    least=Counts(global_reads=11, global_writes=2),
    taken=Counts(global_reads=11, global_writes=2, shared_reads=35, shared_writes=20),
    drawn=("qkv",),
    hints={
        "": (
            "A loop over the keys 0 to t. In each round: the score, the same number in all threads; then the three running numbers.",
            "score = block_sum(q * key's channel e) * scale. Then as in 06_online_softmax: previous, largest, and the factor exp(previous - largest).",
            "total and weighted are both multiplied by the factor; then exp(score - largest) is added to total, and that times the value's channel e "
            "to weighted. At the end out = weighted / total, lse = largest + log(total).",
        ),
        "barrier": (
            "block_sum has barriers: all threads of the block call it equally often, those without a channel too. No `return`, and no call "
            "of it under `if has_channel`.",
        ),
        "race": (
            "Which thread writes lse[b, h, t]? One is enough. And which write out? Those that have a channel: the others have the last channel as their `e`, which is another thread's to write.",
        ),
        "error": (
            "Some scores are in the thousands, and exp of anything above 88.7 is too large for float32: subtract the largest so far. (In row 0: has "
            "query 0 a key? `range(t + 1)` ends with t.)",
        ),
        "bounds": ("Threads without a channel may read channel `e`, which is the last one. cuda.threadIdx.x itself is beyond the end.",),
        "not written": ("out[b, t, h, e] by each thread that has a channel, lse[b, h, t] by one of them, after the loop.",),
    },
    mistakes=(
        Mistake(lambda qkv, s, **_: attention(qkv, s, scale=1), "The scores are not divided by sqrt(HS): `* scale`."),
        Mistake(lambda qkv, s, **_: attention(qkv, s, keys=lambda t: 0 * t + s.T), "Queries look at keys after them: the loop ends with key t."),
        Mistake(lambda qkv, s, **_: attention(qkv, s, keys=lambda t: np.minimum(t + 2, s.T)),
            "Query t looks at key t + 1, one too many: `range(t + 1)` ends with t."),
        Mistake(lambda qkv, s, **_: attention(qkv, s, keys=lambda t: t), "Query t must look at its own key as well: `range(t + 1)` ends with t."),
        Mistake(lambda qkv, s, **_: without_logarithm(attention(qkv, s)),
            "out is right, and lse lacks the logarithm."),
        Mistake(lambda qkv, s, **_: without_the_largest(qkv, s),
            "out is right. In lse the largest is missing: `total` is a sum of exp(score - largest), so add it to the log."),
        Mistake(lambda qkv, s, **_: undivided(qkv, s),
            "lse is right, and out is a sum, not yet a mean: after the loop divide `weighted` by `total`."),
        Mistake(lambda qkv, s, **_: uncorrected(qkv, s, total=True),
            "When a larger score comes, what `total` holds is relative to the old one: multiply it by exp(previous - largest), as you did `weighted`."),
        Mistake(lambda qkv, s, **_: uncorrected(qkv, s, weighted=True),
            "When a larger score comes, what `weighted` holds is relative to the old one, too: multiply it by the same factor as `total`."),
        Mistake(lambda qkv, s, **_: uncorrected(qkv, s, total=True, weighted=True),
            "When a larger score comes, what `total` and `weighted` hold is relative to the old one: multiply both by exp(previous - largest)."),
        Mistake(lambda qkv, s, **_: attention(qkv, s, spare=spare_threads(s)),
            "The last channel is counted more than once: threads without a channel bring its product, too. Their `q`, which is given, is 0: use it."),
    ),
    wrong=(
        Wrong("the sum is not rescaled", {RESCALED_TOTAL: "total = total + exponential"}, "value", "what `total` holds"),
        Wrong("the values are not rescaled", {RESCALED_VALUES: "weighted = weighted + exponential * qkv"}, "value", "what `weighted` holds"),
        Wrong("neither is rescaled", {RESCALED_TOTAL: "total = total + exponential", RESCALED_VALUES: "weighted = weighted + exponential * qkv"},
            "value", "multiply both"),
        Wrong("spare threads bring their channel", {"block_sum(q * qkv": "block_sum(qkv[b, t, QUERY, h, e] * qkv"}, "value", "counted more than once"),
        Wrong("the largest is not subtracted", {"largest = max(previous, score)": "largest = ZERO"}, "error", "88.7"),
        Wrong("the first score in place of the largest", {"largest = max(previous, score)": "largest = score if s == 0 else previous"}, "error", "88.7"),
        Wrong("not divided by sqrt(HS)", {" * scale\n": "\n"}, "value", "sqrt(HS)"),
        Wrong("its own key is left out", {"range(t + 1)": "range(t)"}, "error"),
        Wrong("one key too many", {"range(t + 1)": "range(min(t + 2, qkv.shape[1]))"}, "value", "one too many"),
        Wrong("all keys", {"range(t + 1)": "range(qkv.shape[1])"}, "value", "keys after them"),
        Wrong("the keys instead of the values", {"VALUE, h, e]\n": "KEY, h, e]\n"}, "value"),
        Wrong("the neighbour's head", {"b, s, KEY, h, e": "b, s, KEY, 0, e"}, "value"),
        Wrong("the first sequence", {"b, s, VALUE, h, e": "0, s, VALUE, h, e"}, "value"),
        Wrong("lse without the largest score", {"largest + math.log(total)": "math.log(total)"}, "value", "largest is missing"),
        Wrong("not divided by the total", {"weighted / total": "weighted"}, "value", "not yet a mean"),
        Wrong("spare threads leave", {"    for s in range(t + 1):": "    if not has_channel:\n        return\n    for s in range(t + 1):"}, "barrier"),
        Wrong("spare threads write", {"    if has_channel:": "    if True:"}, "race", "have the last"),
        Wrong("all threads write lse", {"    if cuda.threadIdx.x == 0:": "    if True:"}, "race", "One is enough"),
        Wrong("a float64", {"math.exp(previous - largest)": "math.exp(1.0 * (previous - largest))"}, "float64"),
    ),
)  # fmt: skip
