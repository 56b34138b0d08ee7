"""00_2d: rows and columns, both with edges."""

import numpy as np

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written


def arrays(random, N, C):
    return {"out": written(N, C), "inp": read(random.standard_normal((N, C))), "bias": read(random.standard_normal(C))}


EXERCISE = Exercise(
    function="add_bias",
    arrays=arrays,
    reference=lambda inp, bias: {"out": inp + bias},
    sizes=({"N": 3, "C": 5}, {"N": 1, "C": 1}, {"N": 3, "C": 17}, {"N": 9, "C": 1}, {"N": 7, "C": 10}),
    least=Counts(global_reads=2, global_writes=1),
    least_transactions=28,
    most=Counts(global_reads=2, global_writes=1),
    threads=(8, 4, 1),
    float64_refused=False,
    hints={
        "": (
            "c, row = cuda.grid(2) are a thread's column and row; the launch needs two numbers of blocks and two numbers of threads.",
            "Both numbers of blocks are rounded up: (C + THREADS_X - 1) // THREADS_X along x, and likewise for the rows along y.",
            "Both ends need a check: row < inp.shape[0] and c < inp.shape[1].",
        ),
        "bounds": (
            "The blocks at the right edge and at the lower edge have threads without an element: two conditions.",
            "x counts columns: the first number of cuda.grid(2) belongs to the last index of the array.",
        ),
        "transactions": ("x counts columns: c, row = cuda.grid(2), and the numbers of blocks likewise.",),
        "not written": (
            "If the end of each row is missing, or the last rows, there are too few blocks along x or along y, or the two are mixed up.",
        ),
    },
    mistakes=(
        Mistake(lambda inp, bias: {"out": inp + np.resize(bias, len(inp))[:, None]}, "That adds bias[row]; it must be bias[c]."),
        Mistake(lambda inp, bias: {"out": inp}, "The bias is missing."),
    ),
    wrong=(
        Wrong(
            "x counts rows",
            {
                "c, row = cuda.grid(2)": "row, c = cuda.grid(2)",
                "(C + THREADS_X - 1)": "(N + THREADS_X - 1)",
                "(N + THREADS_Y - 1)": "(C + THREADS_Y - 1)",
            },
            "transactions",
            "x counts columns",
        ),
        Wrong("rows unchecked", {"row < inp.shape[0] and ": ""}, "bounds", "two conditions"),
        Wrong("columns unchecked", {" and c < inp.shape[1]": ""}, "bounds", "two conditions"),
        Wrong("rows and columns swapped", {"c, row = cuda.grid(2)": "row, c = cuda.grid(2)"}, "not written", "mixed up"),
        Wrong("columns rounded down", {"(C + THREADS_X - 1) // THREADS_X": "max(1, C // THREADS_X)"}, "not written", "too few"),
        Wrong("no bias", {" + bias[c]": ""}, "value", "bias is missing"),
    ),
)
