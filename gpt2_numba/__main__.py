"""The commands of the package:  python -m gpt2_numba"""

from gpt2_numba.command_line import main_program

COMMANDS = {
    "train": "train a GPT-2; without flags a small one, on the GPU or on the CPU (--help lists the flags)",
    "doctor": "what this machine has and what is missing; --check checks every layer, --warm compiles the kernels ahead",
    "plot": "draw the losses of a run's log directory",
    "check_model": "compare a model, tensor by tensor, with what another implementation computed; then check that runs repeat to the bit",
}


def main(_argv):
    """Print the commands, a line each."""
    print("Commands (each explains itself with --help):\n")
    for name, purpose in COMMANDS.items():
        print(f"  python -m gpt2_numba.{name:<12} {purpose}")


if __name__ == "__main__":
    main_program(main)
