"""12_ring_all_reduce: a reduce-scatter and an all-gather round a ring, in lists."""

import numpy as np

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def arguments(random, lengths):
    """lengths: of the parts, as text such as "2 and 1"; there are as many processes."""
    lengths = [int(length) for length in lengths.split(" and ")]
    return {"parts": [[random.standard_normal(length) for length in lengths] for _ in lengths]}


def all_reduced(parts):
    ranks, lengths = len(parts), [len(part) for part in parts[0]]
    sums = [sum(of_rank[part] for of_rank in parts) for part in range(ranks)]
    sent = [2 * sum(lengths) - lengths[rank] - lengths[(rank + 1) % ranks] if ranks > 1 else 0 for rank in range(ranks)]
    return {"parts": [list(sums) for _ in parts], "return": sent}


def rounds(parts, second=True, copies=True, sends=1, adds_to=2):
    """The first round, and the second one, or those of a usual mistake. In the first, a rank sends part rank - sends, and adds to part rank - adds_to."""
    ranks = len(parts)
    for step in range(ranks - 1):
        messages = [np.array(parts[rank][(rank - sends - step) % ranks]) for rank in range(ranks)]
        for rank in range(ranks):
            parts[rank][(rank - adds_to - step) % ranks] += messages[rank - 1]
    for step in range(ranks - 1 if second else 0):
        messages = [np.array(parts[rank][(rank - step) % ranks]) for rank in range(ranks)]
        for rank in range(ranks):
            own = parts[rank][(rank - 1 - step) % ranks]
            parts[rank][(rank - 1 - step) % ranks] = messages[rank - 1] if copies else own + messages[rank - 1]
    return {"parts": parts}


FIRST = "parts[rank][(rank - 1 - step) % ranks] for rank"
ADD = "parts[rank][(rank - 2 - step) % ranks] += received[rank]"
SECOND = "parts[rank][(rank - step) % ranks] for rank"
COPY = "parts[rank][(rank - 1 - step) % ranks] = received[rank]"
OFF_BY_ONE = (
    "In the first round one of your two formulas is off by one part. A process begins with part rank - 1, not with part rank; and what comes is "
    "what the left neighbour has sent, whose rank is one less, so it is the part one before that which you send."
)

EXERCISE = host_exercise(
    function="ring_all_reduce",
    arguments=arguments,
    reference=all_reduced,
    sizes=(
        {"lengths": "2 and 2"},
        {"lengths": "3 and 3 and 3"},
        {"lengths": "2 and 2 and 2 and 2"},
        {"lengths": "5"},
        {"lengths": "2 and 1"},
        {"lengths": "4 and 1 and 2"},
        {"lengths": "1 and 3 and 2 and 0 and 4"},
    ),
    hints={
        "": (
            "Two loops, each `for step in range(ranks - 1)`, with one call of pass_to_the_right in each step. Three processes, first round: in "
            "step 0 process 1 sends part 0, in step 1 part 2, which it has received in step 0. Write down what process 2 receives in each step: the "
            "formula is the same, with one rank less.",
            "First round: process rank sends part (rank - 1 - step) % ranks. What comes is what rank - 1 sends: part (rank - 2 - step) % ranks. "
            "In the second round both are one larger.",
        ),
        "error": (
            "pass_to_the_right wants a list with one array for each process, and returns such a list. An array of another length than the part "
            "that it is added to is another part.",
        ),
    },
    mistakes=(
        Mistake(lambda parts: rounds(parts, sends=0, adds_to=1), OFF_BY_ONE),
        Mistake(lambda parts: rounds(parts, adds_to=1), OFF_BY_ONE),
        Mistake(lambda parts: rounds(parts, second=False), "That is the first round: each process has one whole sum. Now they go round once more."),
        Mistake(
            lambda parts: rounds(parts, copies=False),
            "In the second round what comes is a whole sum: it replaces what the process has, and is not added to it.",
        ),
        Mistake(
            lambda parts: {"parts": all_reduced(parts)["parts"]},
            "All sums are right, but it took other messages: in each step each process sends one part, the one it has just received.",
        ),
    ),
    wrong=(
        Wrong("the second round is missing", {COPY: "pass"}, "value", "Now they go round once more"),
        Wrong("it adds in the second round", {COPY: COPY.replace(" = received[rank]", " = parts[rank][(rank - 1 - step) % ranks] + received[rank]")},
            "value", "not added"),
        Wrong("always the first part", {FIRST: "parts[rank][rank - 1] for rank"}, "value"),
        Wrong("the wrong way round the parts", {FIRST: "parts[rank][(rank + 1 + step) % ranks] for rank",
            ADD: "parts[rank][(rank + step) % ranks] += received[rank]"}, "value"),
        Wrong("copies in the first round", {"] += received": "] = received"}, "value"),
        Wrong("one step too few", {"for step in range(ranks - 1):\n        received = pass_to_the_right([parts[rank][(rank - 1":
            "for step in range(ranks - 2):\n        received = pass_to_the_right([parts[rank][(rank - 1"}, "value"),
        Wrong("the part that was sent", {ADD: "parts[rank][(rank - 1 - step) % ranks] += received[rank]"}, "value", "off by one part"),
        Wrong("the first round begins with part rank", {FIRST: SECOND, ADD: ADD.replace("rank - 2", "rank - 1")}, "value", "off by one part"),
        Wrong("the second round begins with another part", {SECOND: FIRST, COPY: COPY.replace("rank - 1 - step", "rank - 2 - step")}, "value"),
        Wrong("a part of four is fixed", {FIRST: "parts[rank][(rank - 1 - step) % 4 % ranks] for rank"}, "value"),
        Wrong("nobody sends anything", {
            "received = pass_to_the_right([parts[rank][(rank - 1 - step) % ranks] for rank in range(ranks)])": "continue",
            "received = pass_to_the_right([parts[rank][(rank - step) % ranks] for rank in range(ranks)])":
                "received = [sum(p[(r - 1 - step) % ranks] for p in parts) if not step else parts[r - 1][(r - 1 - step) % ranks] for r in range(ranks)]",
            }, "value"),
        Wrong("everything at once", {
            "received = pass_to_the_right([parts[rank][(rank - 1 - step) % ranks] for rank in range(ranks)])":
                "whole = pass_to_the_right([np.concatenate(parts[rank]) for rank in range(ranks)])\n"
                "        received = [whole[r][sum(len(p) for p in parts[r][:(r - 2 - step) % ranks]):][:len(parts[r][(r - 2 - step) % ranks])] "
                "for r in range(ranks)]"}, "value", "other messages"),
    ),
)  # fmt: skip
