"""The step time on many GPUs:  python -m dev.scaling  prints the tables, --write updates them in docs/ and draws docs/scaling.png."""

from dev.scaling.report import BLOCKS, write
from gpt2_numba.command_line import Parser, exit_code, main_program


def run(argv):
    """Print or write the tables."""
    parser = Parser(prog="python -m dev.scaling", description="The step time on many GPUs, as tables.")
    parser.add_argument(
        "--write", action="store_true", help="update docs/scaling.md, docs/many_gpus.md, docs/planning.md and docs/scaling.png"
    )
    if parser.parse_args(argv).write:
        write()
        return
    for tables in BLOCKS.values():
        for name, content in tables().items():
            print(f"{name}\n\n{content}\n")


def main(argv):
    """The command line. Returns the exit code: 2 for a user error, reported in one line."""
    return exit_code(run, argv)


if __name__ == "__main__":
    main_program(main)
