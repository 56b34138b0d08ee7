"""The commands of the package:  python -m gpt2_numba"""

from gpt2_numba.command_line import exit_code, main_program
from gpt2_numba.errors import UserError

COMMANDS = {
    "train": "train a GPT-2; without flags a small one, on the GPU or on the CPU (--help lists the flags)",
    "data": "token shards from text, from the Python sources on this machine, or from a data set by name",
    "plan": "memory, largest micro-batch, time and price of a training before it starts, and what does not fit",
    "doctor": "what this machine has and what is missing; --check checks every layer, --warm compiles the kernels ahead",
    "plot": "draw runs: losses, HellaSwag, speed, layers; a picture, or an HTML page with settings and machine",
    "replay": "make a step of a run again, to the bit: which layer or row of the batch explains a spike or a NaN; try kernels on it",
    "evaluate": "loss, perplexity and bits per byte of a model on any text; its answers to multiple-choice questions",
    "export": "write a checkpoint as a Hugging Face folder, with config, tokenizer and model.safetensors",
    "sample": "let a model continue a prompt, or one line after another",
    "check_model": "compare a model, tensor by tensor, with what another implementation computed; then check that runs repeat to the bit",
}


def main(argv):
    """Print the commands, a line each. Returns the exit code."""
    return exit_code(_list_commands, argv)


def _list_commands(argv):
    if argv and argv[0] not in ("-h", "--help"):
        known = f"python -m gpt2_numba.{argv[0]}" if argv[0] in COMMANDS else "python -m gpt2_numba, which lists them"
        raise UserError(f"python -m gpt2_numba takes no arguments, got {argv[0]!r}; its commands are modules: {known}")
    print("Commands (each explains itself with --help):\n")
    for name, purpose in COMMANDS.items():
        print(f"  python -m gpt2_numba.{name:<12} {purpose}")


if __name__ == "__main__":
    main_program(main)
