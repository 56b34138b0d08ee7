"""replay, as tests call it."""

from gpt2_numba import replay


def replay_command(capsys):
    """run(*arguments) -> (exit code, what was printed, errors)."""

    def run(*arguments):
        capsys.readouterr()
        code = replay.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
