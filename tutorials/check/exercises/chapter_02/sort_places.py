"""02_sort_places: the places of each token, found by sorting."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, N, V):
    return {"tokens": random.integers(V - 2, size=N).astype(np.int32), "V": V}  # the last two tokens do not occur


def right(tokens, V):
    places = np.argsort(tokens, kind="stable")
    return places, np.searchsorted(tokens[places], np.arange(V + 1))


def result(places, starts):
    return {"return": (places, starts)}


EXERCISE = host_exercise(
    function="sort_places",
    arguments=arguments,
    reference=lambda tokens, V: result(*right(tokens, V)),
    tolerance=0,
    sizes=({"N": 4, "V": 5}, {"N": 1, "V": 3}, {"N": 7, "V": 32}, {"N": 300, "V": 6}),
    hints={
        "": (
            "np.argsort says in which order the places must be read for the tokens to be sorted. How often does each token occur? np.bincount.",
            "starts[v] is the number of places of all tokens below v: 0, then the cumulative sum of the counts. It has V + 1 numbers.",
        ),
        "value": (
            "result[0] is places: indices into tokens, sorted by token. result[1] is starts: V + 1 numbers, where each token's places begin in "
            "places. Which of the two does the message name? Compute it by hand for 5 5 9 5, the task's example.",
            'places: np.argsort(tokens, kind="stable"), which keeps those of one token in ascending order. starts: 0 and the cumulative sum of '
            "how often each of all V tokens occurs, also the last ones.",
        ),
        "input": ("np.sort and np.argsort return new arrays; tokens.sort() changes the caller's.",),
        "error": ("np.argsort, np.bincount and np.cumsum take an array each. The message names the line.",),
    },
    mistakes=(
        Mistake(
            lambda tokens, V: result(np.sort(tokens), right(tokens, V)[1]), "Those are the tokens, sorted: places are indices. np.argsort?"
        ),
        Mistake(
            lambda tokens, V: result(np.argsort(tokens, kind="heapsort"), right(tokens, V)[1]),
            'The places of one token must be in ascending order: ask np.argsort for kind="stable".',
        ),
        Mistake(
            lambda tokens, V: result(np.argsort(tokens), right(tokens, V)[1]),
            'Ask np.argsort for kind="stable": see the task\'s last condition.',
        ),
        Mistake(
            lambda tokens, V: result(right(tokens, V)[0], right(tokens, V)[1][1:]),
            "starts has V + 1 numbers: the first is 0, where the places of token 0 begin.",
        ),
        Mistake(
            lambda tokens, V: result(right(tokens, V)[0], np.concatenate([[0], np.cumsum(np.bincount(tokens))])),
            "Tokens at the end of the vocabulary may not occur: np.bincount(tokens, minlength=V).",
        ),
        Mistake(
            lambda tokens, V: result(right(tokens, V)[0], np.searchsorted(tokens, np.arange(V + 1))),
            "np.searchsorted needs a sorted array, and tokens is none: tokens[places] is.",
        ),
        Mistake(
            lambda tokens, V: result(right(tokens, V)[0], np.concatenate([np.bincount(tokens, minlength=V), [0]])),
            "Those are the counts: starts is their cumulative sum.",
        ),
    ),
    wrong=(
        Wrong("not stable", {'kind="stable"': 'kind="heapsort"'}, "value", "in ascending order"),
        Wrong("the tokens", {'np.argsort(tokens, kind="stable")': "np.sort(tokens)"}, "value", "indices"),
        Wrong(
            "searches among unsorted tokens",
            {"np.concatenate([[0], np.cumsum(counts)])": "np.searchsorted(tokens, np.arange(V + 1))"},
            "value",
            "searchsorted",
        ),
        Wrong("no first zero", {"np.concatenate([[0], np.cumsum(counts)])": "np.cumsum(counts)"}, "value"),
        Wrong("no minlength", {", minlength=V": ""}, "value"),
        Wrong(
            "the tokens that occur only",
            {"np.concatenate([[0], np.cumsum(counts)])": "np.unique(tokens[places], return_index=True)[1]"},
            "value",
        ),
        Wrong("backwards", {'kind="stable")': 'kind="stable")[::-1]'}, "value"),
        Wrong("sorts the tokens in place", {"    places =": "    tokens.sort()\n    places ="}, "input", "new arrays"),
        Wrong("one of the two", {"return places, starts": "return places"}, "value"),
    ),
)
