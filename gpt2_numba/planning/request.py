"""The command line of a plan: the flags of a training, and a few that say on what and for how long."""

import argparse
import dataclasses
import difflib
import os
import re
from dataclasses import dataclass

from gpt2_numba.command_line import Parser
from gpt2_numba.errors import UserError
from gpt2_numba.planning.cards import CARDS
from gpt2_numba.planning.figures import NETWORKS
from gpt2_numba.training.settings import Settings, parse_settings

SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
MOST_GPUS = 4096
# What launchers tell a process: the number of processes, and its rank. A training command under mpirun is planned once, not by each.
LAUNCHED = {"OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK", "PMI_SIZE": "PMI_RANK", "MV2_COMM_WORLD_SIZE": "MV2_COMM_WORLD_RANK"}

EPILOG = """\
All flags of python -m gpt2_numba.train are understood as well: replace train by plan in a command to plan it. With -i, what the command leaves
out has the trainer's defaults; without -i, the plan chooses it (-b, -r, -d, -z, -x) and says so.

examples:
  python -m gpt2_numba.plan -e d48 --gpus 8 --gpu h100 --tokens 33.6B
  python -m gpt2_numba.plan -i 'data/*_train_*.bin' -j 'data/*_val_*.bin' -e d12 -b 64 -d 524288 -l 0.0006 -u 700 -o log124M --gpu 4090

exit code: 0 if the run can start, 1 if the trainer would refuse it or run out of memory or disk, 2 for a mistake in the command
"""


@dataclass(frozen=True)
class Request:
    """What was asked for. What was not given is None."""

    settings: Settings  # the trainer's flags
    gpu: str | None
    gpus: int | None
    tokens: int | None  # of the whole run
    data_tokens: int | None  # that there are to train on
    price: float | None  # dollars per GPU-hour
    network: str  # one of NETWORKS
    disk: float | None  # GB that are free for checkpoints


def parse_request(argv):
    """The Request of a command line. Raises UserError for flags that neither the plan nor the trainer has, and for wrong values."""
    parser = _parser()
    own_flags = {flag for action in parser._actions for flag in action.option_strings}
    own, trainers, remaining = [], [], iter(argv)
    for argument in remaining:
        flag, equals, _ = argument.partition("=")
        if flag in own_flags:
            own.append(argument)
            if not equals and flag != "--help":
                own += [value for value in (next(remaining, None),) if value is not None]
        else:
            _check_spelling(flag, own_flags)
            trainers.append(argument)
    chosen = parser.parse_args(own)
    settings = parse_settings(trainers)
    if chosen.tokens and settings.max_steps:
        raise UserError(
            f"--tokens and -x both say how long the run is, got {chosen.tokens:,} tokens and {settings.max_steps} steps: omit one"
        )
    return Request(settings=settings, **vars(chosen))


def _check_spelling(flag, own_flags):
    """Raise UserError for what is nearly one of the plan's own flags, and none of the trainer's, which looks for its own."""
    trainers = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Settings)}
    if flag.startswith("--") and flag not in trainers and (nearest := difflib.get_close_matches(flag, own_flags, n=1, cutoff=0.75)):
        raise UserError(f"unknown flag {flag}: did you mean {nearest[0]}? (--help lists the plan's flags)")


def launched():
    """(number of processes, rank) as the launcher tells it, or (None, 0) without one."""
    for size, rank in LAUNCHED.items():
        if size in os.environ:
            return int(os.environ[size]), int(os.environ.get(rank, 0))
    return None, 0


def _parser():
    parser = Parser(
        prog="python -m gpt2_numba.plan", usage="python -m gpt2_numba.plan [FLAG VALUE]...", add_help=False, allow_abbrev=False,
        description="Plan a training before it starts: memory, largest micro-batch, time, price, and what does not fit.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--help", action="help", help="print this and exit")
    parser.add_argument("--gpu", metavar="CARD", help=f"{', '.join(CARDS)} (default: this machine's GPU, otherwise h100)")
    parser.add_argument("--gpus", metavar="N", type=_whole(1, MOST_GPUS), help="number of GPUs, a process each (default: -pn, or 1)")
    parser.add_argument("--tokens", metavar="N", type=_count, help="tokens to train on in all, such as 33.6B, in place of -x")
    parser.add_argument("--data-tokens", metavar="N", type=_count, help="tokens there are to train on (default: those of the shards of -i)")
    parser.add_argument("--price", metavar="DOLLARS", type=_amount, help="dollars per GPU-hour (default: an assumption, which is printed)")
    parser.add_argument(
        "--network", metavar="NAME", default=NETWORKS[0], type=_network, help=f"between hosts of 8: {' or '.join(map(repr, NETWORKS))}"
    )
    parser.add_argument("--disk", metavar="GB", type=_amount, help="free space for checkpoints (default: of the disk of -o)")
    return parser


def _count(text):
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kmbt]?)", text.strip().replace(",", "").lower())
    count = round(float(found[1]) * SUFFIXES[found[2]]) if found else 0
    if not 0 < count < 10**18:
        raise argparse.ArgumentTypeError(f"must be a number of tokens such as 33600000000, 500M or 33.6B, got {text[:40]!r}")
    return count


def _amount(text):
    found = re.fullmatch(r"\d{1,12}(\.\d{1,9})?", text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"must be a number such as 3.5, got {text[:40]!r}")
    return float(text)


def _whole(minimum, maximum):
    def convert(text):
        if not (text.isdecimal() and len(text) < 10 and minimum <= int(text) <= maximum):
            raise argparse.ArgumentTypeError(f"must be an integer from {minimum} to {maximum}, got {text[:40]!r}")
        return int(text)

    return convert


def _network(text):
    """One of NETWORKS, by its beginning."""
    matching = [name for name in NETWORKS if name.startswith(text)]
    if len(matching) != 1:
        raise argparse.ArgumentTypeError(f"must be {' or '.join(map(repr, NETWORKS))} or the beginning of one, got {text[:40]!r}")
    return matching[0]
