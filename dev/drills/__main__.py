"""Run the drills and print their table:  python -m dev.drills [NAME ...] [--times N] [--seed S] [-- FLAG VALUE ...]

Exit code 1 if anything was lost or silent. Flags after -- are added to those of every training, such as --device gpu.
"""

import dev.drills.one_thread  # noqa: F401, before anything that imports NumPy
from dev.drills import DRILLS, training
from dev.drills.report import HEADER, Scale, run_drill
from gpt2_numba.command_line import Parser, exit_code, main_program
from gpt2_numba.errors import UserError


def parse_arguments(argv):
    parser = Parser(prog="python -m dev.drills", description="Try faults against the trainer: is anything lost, or silently wrong?")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"the drills to run (default: all): {', '.join(DRILLS)}")
    parser.add_argument("--times", type=float, default=1.0, metavar="N", help="N times as many random tries (default: 1)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the random tries (default: 1)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this try alone, of one drill")
    parser.add_argument("--short", action="store_true", help="the short form, as in tests/test_drills.py")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in DRILLS:
            raise UserError(f"{name}: there is no such drill, choose from {', '.join(DRILLS)}")
    if not 0 < arguments.times < 1e6:
        raise UserError(f"--times must be more than 0 and less than a million, got {arguments.times}")
    if arguments.only is not None and len(arguments.names) != 1:
        raise UserError(f"--only is for one drill, got {len(arguments.names)} names: give exactly one")
    return arguments


def run(argv):
    own, extra = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    arguments = parse_arguments(own)
    training.extra_flags[:] = extra
    print(HEADER, flush=True)
    rows = []
    for name in arguments.names or DRILLS:
        rows.append(run_drill(name, Scale(arguments.times, arguments.short), arguments.seed, arguments.only))
        print(rows[-1], flush=True)
    for line in (line for row in rows for line in row.details(extra)):
        print(line)
    return 0 if all(row.passed for row in rows) else 1


def main(argv):
    """The command line. Returns the exit code: 0, 1 if anything was lost or silent, 2 for a user's mistake."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
