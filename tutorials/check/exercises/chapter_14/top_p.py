"""14_top_p: nucleus sampling on logits."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise

CASES = {
    "one token": lambda random: (np.array([3.0]), 0.5),
    "four equal ones": lambda random: (np.zeros(4), 0.5),  # their sums are exact: two tokens are enough
    "a tie at the border": lambda random: (np.array([0.0, 2.0, 0.0, 0.0, 2.0]), 0.9),
    "one token is enough": lambda random: (np.array([0.0, 9.0, 1.0]), 0.2),
    "many": lambda random: (2 * random.standard_normal(300), 0.9),
    "nearly all": lambda random: (random.standard_normal(300), 0.999),
    "large logits": lambda random: (1000 + 2 * random.standard_normal(50), 0.7),
    "all": lambda random: (3 * random.standard_normal(200), 1.0),
}


def arguments(random, case):
    logits, top_p = CASES[case](random)
    return {"logits": logits, "top_p": top_p}


def drawn_with(logits, top_p, *, strict=False, renormalised=True, last_first=False, too_many=0):
    """The answer; with other keywords, a wrong one."""
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    order = sorted(range(len(logits)), key=lambda i: (-probabilities[i], -i if last_first else i))
    kept, total = [], 0.0
    for token in order:
        if total >= top_p and top_p < 1:
            break
        if strict and kept and total + probabilities[token] > top_p:
            break
        kept.append(token)
        total += probabilities[token]
    kept = order[: len(kept) + too_many] if top_p < 1 else order
    left = np.zeros(len(logits))
    left[kept] = probabilities[kept]
    return {"return": left / left.sum() if renormalised else left}


def mistake(hint, **changed):
    return Mistake(lambda **given: drawn_with(**given, **changed), hint)


EXERCISE = host_exercise(
    function="nucleus",
    arguments=arguments,
    reference=drawn_with,
    sizes=tuple({"case": case} for case in CASES),
    hints={
        "": (
            "A token is kept if the likelier ones together do not reach top_p yet: so the first one always is.",
            "np.cumsum(probabilities[order]) minus probabilities[order] is what the likelier ones have together.",
        ),
        "not written": ("The function must return the array, (V,).",),
        "value": ("The message names the token. Which are kept? The fewest that reach top_p; the one that reaches it is among them.",),
    },
    mistakes=(
        mistake("The kept ones must add up to 1 again: divide by their sum.", renormalised=False),
        mistake("The token with which the sum reaches top_p is kept, too.", strict=True),
        mistake("That is one token more than needed: stop as soon as the sum has reached top_p.", too_many=1),
        mistake("Among equally likely tokens those with the lower numbers come first.", last_first=True),
    ),
    wrong=(
        Wrong("not divided", {" / probabilities[kept].sum()": ""}, "value", "divide by their sum"),
        Wrong("without the one that reaches it", {"before < top_p": "sums <= top_p"}, "value"),
        Wrong("one too many", {"before < top_p": "before <= top_p"}, "value", "one token more"),
        Wrong("the first sum that is above", {"order[before < top_p]": "order[: np.argmax(sums > top_p) + 1]"}, "value"),
        Wrong("the least likely ones", {"before < top_p": "sums > top_p"}, "value"),
        Wrong("in the order of the numbers", {"sums = np.cumsum(probabilities[order])": "order = np.arange(len(logits)); sums = np.cumsum(probabilities)"}, "value"),
        Wrong("in the order of the likelihoods", {"left[kept] = probabilities[kept]": "left[: len(kept)] = probabilities[kept]"}, "value"),
        Wrong("a tie the other way round", {"    sums =": "    order = np.argsort(probabilities, kind='stable')[::-1]; sums ="}, "value", "lower numbers"),
        Wrong("all above a fixed probability", {"order[before < top_p]": "order[probabilities[order] > 1 - top_p]"}, "value"),
        Wrong("logits of the kept", {"left[kept] = probabilities[kept] /": "left[kept] = logits[kept] /"}, "value"),
        Wrong("printed", {"return left": "print(left)"}, "not written", "must return"),
    ),
)  # fmt: skip
