"""00_many_blocks: several blocks, and the bounds check."""

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written

EXERCISE = Exercise(
    function="square",
    arrays=lambda random, N: {"out": written(N), "inp": read(random.standard_normal(N))},
    reference=lambda inp: {"out": inp**2},
    sizes=({"N": 5}, {"N": 1}, {"N": 2}, {"N": 31}, {"N": 32}, {"N": 33}, {"N": 97}),
    least=Counts(global_reads=1, global_writes=1),
    most=Counts(global_reads=2, global_writes=1),  # inp[i] * inp[i] reads twice
    threads=(32, 1, 1),
    float64_refused=False,
    hints={
        "": (
            "Two things are missing: what a thread does, and the launch, square_kernel[blocks, THREADS](out, inp).",
            "33 elements need 2 blocks of 32 threads, 32 need 1, 1 needs 1: a division that rounds up.",
            "(N + THREADS - 1) // THREADS divides N by THREADS and rounds up.",
        ),
        "bounds": ("The last block has threads without an element. Which condition holds for those that have one?",),
        "launch": (
            "Between the brackets the number of blocks comes first, then the number of threads in each: [blocks, THREADS].",
            "N // THREADS rounds down: 31 // 32 is 0. The number of blocks must be rounded up.",
        ),
        "not written": (
            "If elements at the end are missing, there are too few blocks: N // THREADS rounds down, it must be rounded up.",
            "If all are missing, no thread gets as far as the assignment.",
        ),
        "race": ("cuda.threadIdx.x starts at 0 again in every block, so thread 3 of each block is at element 3. cuda.grid(1) counts on.",),
    },
    mistakes=(Mistake(lambda inp: {"out": 2 * inp}, "That is twice inp[i]; it must be inp[i] times itself."),),
    wrong=(
        Wrong("no bounds check", {"if i < inp.shape[0]:": "if True:"}, "bounds", "threads without an element"),
        Wrong("rounds down", {"(inp.shape[0] + THREADS - 1) // THREADS": "inp.shape[0] // THREADS"}, "launch"),
        Wrong("blocks and threads swapped", {"[blocks, THREADS]": "[THREADS, blocks]"}, "launch", "comes first"),
        Wrong(
            "one thread does it all",
            {"    i = cuda.grid(1)\n    if i < inp.shape[0]:": "    for i in range(inp.shape[0]):", "[blocks, THREADS]": "[1, 1]"},
            "launch",
        ),
        Wrong(
            "a block does it all",
            {
                "    i = cuda.grid(1)\n    if i < inp.shape[0]:": "    for i in range(cuda.threadIdx.x, inp.shape[0], THREADS):",
                "[blocks, THREADS]": "[1, THREADS]",
            },
            "accesses",
        ),
        Wrong(
            "one block too few", {"(inp.shape[0] + THREADS - 1) // THREADS": "max(1, inp.shape[0] // THREADS)"}, "not written", "too few"
        ),
        Wrong("the same numbers in every block", {"cuda.grid(1)": "cuda.threadIdx.x"}, "race", "in every block"),
        Wrong("one element less", {"i < inp.shape[0]": "i < inp.shape[0] - 1"}, "not written"),
    ),
)
