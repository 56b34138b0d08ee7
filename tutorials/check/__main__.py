"""python -m tutorials.check NAME"""

from gpt2_numba.command_line import main_program
from tutorials.check.cli import main

if __name__ == "__main__":
    main_program(main)
