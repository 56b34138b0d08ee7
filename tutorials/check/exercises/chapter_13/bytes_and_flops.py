"""13_bytes_and_flops: the least bytes and FLOP of three launches, as dev/bench/costs.py counts them."""

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def counted(B, T, C, OC, NH, itemsize, *, added=2, pairs_of=lambda T: T * (T + 1) // 2, lse_bytes=4, products=2, of_a_product=2):
    """The answer; with other keywords, a wrong one."""
    N = B * T
    matrices = N * OC + 2 * N * C + OC * C
    return {
        "residual_forward": (3 * N * C * itemsize, 0),
        "matmul_backward": ((matrices + added * (OC * C + OC)) * itemsize, products * of_a_product * N * C * OC),
        "attention_forward": (4 * N * C * itemsize + lse_bytes * B * NH * T, 2 * of_a_product * B * pairs_of(T) * C),
    }


def mistaken(**changed):
    return lambda **sizes: {"return": counted(**sizes, **changed)}


def heads_counted_twice(**sizes):
    N, answer = sizes["B"] * sizes["T"], counted(**sizes)
    nbytes, flop = answer["attention_forward"]
    return {"return": answer | {"attention_forward": (nbytes, flop * sizes["NH"])} if N else answer}


EXERCISE = host_exercise(
    function="bytes_and_flops",
    arguments=lambda random, **sizes: dict(sizes),
    reference=lambda **sizes: {"return": counted(**sizes)},
    sizes=(
        {"B": 1, "T": 1, "C": 6, "OC": 5, "NH": 2, "itemsize": 4},
        {"B": 2, "T": 5, "C": 12, "OC": 7, "NH": 3, "itemsize": 2},
        {"B": 64, "T": 1024, "C": 768, "OC": 3072, "NH": 12, "itemsize": 2},
    ),
    tolerance=0,
    hints={
        "": (
            "Write down each array with its shape: inp (N, C) has N * C * itemsize bytes. Then which of them count once, and which twice?",
            "A product of (N, OC) and (OC, C) has N * C results, each the sum of OC products: N * C * OC multiply-adds, two FLOP each.",
            "Query t sees t + 1 keys, so a head of a sequence has 1 + 2 + ... + T = T (T + 1) / 2 pairs, each with C / NH multiply-adds.",
        ),
        "value": (
            "The message names the launch, then 0 for the bytes or 1 for the FLOP. At the first size T is 1: a single pair for each head.",
        ),
        "not written": ("The function must return a dict.",),
    },
    mistakes=(
        Mistake(mistaken(added=1), "dweight and dbias are added to: they are read and written, so they count twice."),
        Mistake(mistaken(pairs_of=lambda T: T * T), "That is all T² pairs. A query sees itself and the keys before it: T (T + 1) / 2."),
        Mistake(mistaken(pairs_of=lambda T: T * (T - 1) // 2), "A query sees itself, too: T (T + 1) / 2 pairs."),
        Mistake(mistaken(products=1), "matmul_backward has two products, one for dinp and one for dweight."),
        Mistake(mistaken(of_a_product=1), "A multiply-add is two operations."),
        Mistake(heads_counted_twice, "A head has C / NH channels: all heads together have C."),
        Mistake(
            lambda **sizes: {"return": counted(**sizes, lse_bytes=sizes["itemsize"])}, "lse has 4 bytes a number, whatever the others have."
        ),
    ),
    wrong=(
        Wrong("added to counts once", {"2 * parameters": "parameters"}, "value", "count twice"),
        Wrong("all pairs", {"T * (T + 1) // 2": "T * T"}, "value", "all T² pairs"),
        Wrong("without the diagonal", {"T * (T + 1) // 2": "T * (T - 1) // 2"}, "value", "sees itself"),
        Wrong("one product", {"2 * 2 * N * C * OC": "2 * N * C * OC"}, "value", "two products"),
        Wrong("a multiply-add is one", {"2 * 2 * N": "2 * N", "2 * 2 * pairs": "2 * pairs"}, "value", "two operations"),
        Wrong("every head has all channels", {"(C // NH)": "C"}, "value", "C / NH channels"),
        Wrong("lse in bfloat16", {"4 * B * NH * T": "itemsize * B * NH * T"}, "value", "4 bytes"),
        Wrong("two sheets", {"(3 * N": "(2 * N"}, "value"),
        Wrong("no dbias", {"OC * C + OC\n": "OC * C\n"}, "value"),
        Wrong("numbers, not bytes", {"2 * parameters) * itemsize": "2 * parameters)"}, "value"),
        Wrong("printed", {"return {": "result = {"}, "not written", "must return"),
    ),
)
