"""00_double: one block, a thread for each element."""

from tutorials.check.exercise import Counts, Exercise, Mistake, Wrong, read, written

EXERCISE = Exercise(
    function="double",
    arrays=lambda random, N: {"out": written(N), "inp": read(random.standard_normal(N))},
    reference=lambda inp: {"out": 2 * inp},
    sizes=({"N": 5}, {"N": 1}, {"N": 2}, {"N": 31}, {"N": 97}, {"N": 33}),
    least=Counts(global_reads=1, global_writes=1),
    most=Counts(global_reads=1, global_writes=1),
    float64_refused=False,
    hints={
        "": (
            "The kernel runs once in every thread. Its first line finds out which thread this is: i = cuda.threadIdx.x",
            "Thread i reads inp[i] and assigns to out[i]; there is no loop.",
        ),
        "race": ("Several threads write to the same element. Each must write to its own: index out by the thread's number.",),
    },
    mistakes=(Mistake(lambda inp: {"out": inp**2}, "That is inp[i] times itself; it must be twice inp[i]."),),
    wrong=(
        Wrong(
            "one thread does it all",
            {"    out[i] = TWO * inp[i]": "    if i == 0:\n        for k in range(inp.shape[0]):\n            out[k] = TWO * inp[k]"},
            "accesses",
            "its own part",
        ),
        Wrong("only element 0", {"cuda.threadIdx.x": "0"}, "race", "same element"),
        Wrong("a neighbour's element", {"out[i] =": "out[i + 1] ="}, "bounds"),
        Wrong("squares", {"TWO * inp[i]": "inp[i] * inp[i]"}, "value", "times itself"),
        Wrong("NumPy instead of a kernel", {"double_kernel[1, inp.shape[0]](out, inp)": "out[:] = 2 * inp.copy_to_host()"}, "not launched"),
    ),
)
