"""What a training will take, before it starts: memory, the largest micro-batch, time, price, and what does not fit.

    python -m gpt2_numba.plan -e d48 --gpus 8 --gpu h100 --tokens 33.6B

Nothing is allocated and no GPU is needed. A training command is planned by replacing the module's name, train, by plan. How the figures come
about: docs/planning.md.
"""

from gpt2_numba.command_line import exit_code, main_program
from gpt2_numba.planning.choices import decide
from gpt2_numba.planning.report import report
from gpt2_numba.planning.request import launched, parse_request


def run(argv):
    """Print the plan. Returns 0 if the run can start, 1 if not. Raises UserError."""
    request = parse_request(argv)
    if launched()[1] > 0:
        return 0  # under mpirun, the first process plans for all
    lines, can_start = report(decide(request))
    print("\n".join(lines))
    return 0 if can_start else 1


def main(argv):
    """The command line. Returns the exit code: that of `run`, or 2 for a user's mistake, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
