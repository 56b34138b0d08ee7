"""The check: runs what the learner wrote, and says pass, or what is wrong first, where, and a hint.

    python -m tutorials.check 00_double          or, in a notebook,          check("00_double")

A pass compares accesses of memory with the least possible. The learner's code runs in a process of its own, in Numba's simulator, with a
time limit, so that nothing it does can end or disturb this one. These modules, in the order in which a check passes through them:

    cli, running, printing    this process: starts the others, puts their reports together (a Verdict), prints
    worker                    the process of the learner's code
    loading, examining        load the file; call its function at every size of the exercise, with traps
    watching                  records what each thread touches, with the race detector on
    comparing, counting       the first wrong element; accesses, transactions and bank conflicts
    drawing                   who touches what, as text or as a figure
    compiling                 another process: does it compile for a GPU, and without float64?
    hints                     which hint is next
    exercise, layer_exercises, host_exercises    what an exercise is: with kernels, a layer function of GPT-2, without kernels
    exercises                 all of them
"""

from tutorials.check.running import SECONDS


def check(name, file=None, draw=False, seconds=SECONDS):
    """Check an exercise, and print the verdict. Returns it, true for a pass.

    name     such as "00_double"
    file     the file to check; by default the learner's own, tutorials/exercises/NAME.py
    draw     show who touches what in every array, not only where the exercise is about it
    seconds  how long the learner's code may run
    Raises UserError for a name that no exercise has.
    """
    from tutorials.check.printing import print_verdict
    from tutorials.check.running import run

    verdict = run(name, file, seconds)
    print_verdict(verdict, draw)
    return verdict
