"""00_coalesced: the same work with neighbours touching neighbours."""

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written


def arrays(random, N, C):
    return {"out": written(N, C), "inp": read(random.standard_normal((N, C))), "scale": read(random.standard_normal(N))}


EXERCISE = Exercise(
    function="scale_rows",
    arrays=arrays,
    reference=lambda inp, scale: {"out": scale[:, None] * inp},
    sizes=({"N": 2, "C": 5}, {"N": 1, "C": 1}, {"N": 2, "C": 31}, {"N": 33, "C": 2}, {"N": 3, "C": 33}, {"N": 7, "C": 97}, {"N": 8, "C": 128}),
    least=Counts(global_reads=5, global_writes=4),
    least_transactions=264,  # 4 KiB are read and as many written, and each row needs a piece of scale
    most=Counts(global_reads=8, global_writes=4),  # scale may be read for each column
    float64_refused=False,
    drawn=("inp", "out"),
    hints={
        "": (
            "Give a block a row: row = cuda.blockIdx.x. Which of its columns does a thread take?",
            "Thread i takes columns i, i + 32, i + 64, …: for c in range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x)",
        ),
        "accesses": (
            "Neighbouring threads take neighbouring columns of the same row: a block for each row, and its threads stride along it.",
        ),
        "transactions": (
            "Look at the picture: the threads of the warp touch elements that are far apart. cuda.threadIdx.x must be the last index.",
            "A block for each row, and a loop over its columns that starts at the thread's number and goes on by the number of threads.",
        ),
        "not written": ("Rows may have more elements than a block has threads: does the loop reach all of them?",),
    },
    mistakes=(Mistake(lambda inp, scale: {"out": inp}, "The factor is missing."),),
    wrong=(
        Wrong(
            "a thread for each row",
            {
                "cuda.blockIdx.x": "cuda.grid(1)",
                "factor = scale[row]": "if row >= inp.shape[0]:\n        return\n    factor = scale[row]",
                "range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x)": "range(inp.shape[1])",
                "[inp.shape[0], THREADS]": "[(inp.shape[0] + THREADS - 1) // THREADS, THREADS]",
            },
            "accesses",
            "Neighbouring threads",
        ),
        Wrong(
            "a chunk for each thread",
            {
                "range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x)": "range(cuda.threadIdx.x * ((inp.shape[1] + 31) // 32), "
                "min(inp.shape[1], (cuda.threadIdx.x + 1) * ((inp.shape[1] + 31) // 32)))",
            },
            "transactions",
        ),
        Wrong("the first 32 columns only", {"range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x)": "range(cuda.threadIdx.x, "
            "min(32, inp.shape[1]), 32)"}, "not written", "more elements"),
        Wrong("every thread takes all columns", {"range(cuda.threadIdx.x, inp.shape[1], cuda.blockDim.x)": "range(inp.shape[1])"}, "race"),
    ),
)  # fmt: skip
