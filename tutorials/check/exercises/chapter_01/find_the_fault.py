"""01_find_the_fault: the scale of all channels in place of a head's."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def heads_of(rows, B, NH):
    return rows.reshape(B, len(rows) // B, NH, rows.shape[1] // NH).swapaxes(1, 2)


def arguments(random, B, T, NH, HS):
    qkv = random.standard_normal((B * T, 3 * NH * HS))
    q, k, _ = (heads_of(part, B, NH) for part in np.split(qkv, 3, axis=1))
    exponentials = np.exp(np.where(np.tri(T, dtype=bool), q @ k.swapaxes(2, 3) / np.sqrt(HS), -np.inf))
    return {
        "dqkv": np.full(qkv.shape, np.nan), "dout": random.standard_normal((B * T, NH * HS)), "qkv": qkv,
        "att": exponentials / exponentials.sum(axis=3, keepdims=True), "B": B, "NH": NH,
    }  # fmt: skip


def gradients(dout, qkv, att, B, NH, channels=None):
    """channels: those of which the root divides the scores; a head's if None."""
    q, k, v = (heads_of(part, B, NH) for part in np.split(qkv, 3, axis=1))
    dout = heads_of(dout, B, NH)
    datt = dout @ v.swapaxes(2, 3)
    dscore = att * (datt - (att * datt).sum(axis=3, keepdims=True)) / np.sqrt(channels or dout.shape[3])
    parts = dscore @ k, dscore.swapaxes(2, 3) @ q, att.swapaxes(2, 3) @ dout
    return {"dqkv": np.concatenate([part.swapaxes(1, 2).reshape(len(qkv), -1) for part in parts], axis=1)}


EXERCISE = host_exercise(
    function="attention_backward",
    arguments=arguments,
    reference=lambda dqkv, **given: gradients(**given),
    sizes=({"B": 2, "T": 5, "NH": 1, "HS": 4}, {"B": 2, "T": 5, "NH": 3, "HS": 4}, {"B": 1, "T": 3, "NH": 2, "HS": 5}),
    hints={
        "": (
            "Which number stands for the channels of a head in the code, and what is it with one head, and with three?",
            "Look for the line with the square root. Behind split_heads, dout.shape[3] is HS.",
        ),
    },
    mistakes=(
        Mistake(
            lambda dqkv, dout, **given: gradients(dout, **given, channels=dout.shape[1]),
            "q and k are off by the same factor, v is right: which number goes into both dq and dk, but not into dv?",
        ),
    ),
    wrong=(
        Wrong("as it was given", {"    scale = 1 / math.sqrt(dout.shape[3])\n": ""}, "value", "which number goes into both"),
        Wrong("heads for channels", {"math.sqrt(dout.shape[3])": "math.sqrt(NH)"}, "value"),
        Wrong("a number that fits the first sizes", {"1 / math.sqrt(dout.shape[3])": "0.5"}, "value"),
        Wrong("tokens for channels", {"dout.shape[3])": "dout.shape[2])"}, "value"),
    ),
)
