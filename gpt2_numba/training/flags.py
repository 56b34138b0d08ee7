"""Flags declared as the fields of a dataclass: what values each takes, the command line that sets them, and its help.

    @dataclass(frozen=True)
    class Settings:
        batch_size: int | None = setting("-b", "batch", "B", integer(1), "sequences per forward pass")

    settings = parse_flags(Settings, ["-b", "4"], default=lambda field: "default 8")

A flag that is not given is None. A rule converts the text of a value to the value, or raises ValueError with the rule that the text breaks:
"-b must be an integer of at least 1, got '0'".
"""

import argparse
import dataclasses
import difflib
import importlib.util
import math
import os

from gpt2_numba.errors import UserError

LARGEST = 2**31 - 1  # llm.c's flags and most of its files have integers of 32 bits

# --------------------------------------------------------------------------------------------------------------- rules


def non_empty(text):
    """Rule: any text but none."""
    if not text:
        raise ValueError("a non-empty string")
    return text


def path(text):
    """Rule: a path or a pattern of paths. `~` is a home directory also where the shell leaves it alone, as in -o=~/log."""
    path = os.path.expanduser(non_empty(text))
    if max(len(os.fsencode(name)) for name in path.split(os.sep)) > 255:
        raise ValueError("a path whose names have at most 255 bytes")
    return path


def name_or_path(text):
    """Rule: a path, or a name of something else."""
    return os.path.expanduser(non_empty(text))


def integer(minimum, maximum=None, or_value=None):
    """Rule: an integer from minimum to maximum, by default LARGEST, or the one special value or_value."""
    rule = f"an integer of at least {minimum}" if maximum is None else f"an integer from {minimum} to {maximum}"
    if or_value is not None:
        rule += f", or {or_value}"

    def convert(text):
        if maximum is None and len(text) > 12 and text.isdecimal():  # int() refuses thousands of digits
            raise ValueError(f"an integer of at most {LARGEST}")
        try:
            value = int(text)
        except ValueError:
            raise ValueError(rule) from None
        if maximum is None and value > LARGEST:
            raise ValueError(f"an integer of at most {LARGEST}")
        in_range = minimum <= value and (maximum is None or value <= maximum)
        if not in_range and value != or_value:
            raise ValueError(rule)
        return value

    return convert


def number(minimum, maximum=math.inf):
    """Rule: a finite number from minimum to maximum."""
    rule = f"a number of at least {minimum}" if maximum == math.inf else f"a number from {minimum} to {maximum}"

    def convert(text):
        try:
            value = float(text)
        except ValueError:
            raise ValueError(rule) from None
        if not (math.isfinite(value) and minimum <= value <= maximum):
            raise ValueError(rule)
        return value

    return convert


def one_of(*words):
    """Rule: one of the given words."""

    def convert(text):
        if text not in words:
            raise ValueError("one of " + ", ".join(words))
        return text

    return convert


def or_word(word, convert):
    """Rule: one special word, or a value that `convert` accepts."""

    def convert_or_word(text):
        if text == word:
            return word
        try:
            return convert(text)
        except ValueError as rule:
            raise ValueError(f"{rule}, or {word}") from None

    return convert_or_word


def installed(*packages):
    """Rule: one of the given packages, installed."""
    known = one_of(*packages)

    def convert(text):
        if importlib.util.find_spec(known(text)) is None:
            raise ValueError(f"a package that is installed (pip install {text}), or left out")
        return text

    return convert


def switch(text):
    """Rule: 0 or 1."""
    if text not in ("0", "1"):
        raise ValueError("0 (off) or 1 (on)")
    return text == "1"


def on_off(text):
    """Rule: on or off."""
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


# ------------------------------------------------------------------------------------------------------ declarations


def setting(short, group, metavar, convert, help_text, unset=None):
    """One field of the dataclass, with what the command line needs to know about it.

    short    the short flag, or None; the long one is derived from the field's name
    convert  function from the text of a value to the value; raises ValueError with the rule
    group    the title under which the help lists it
    unset    how the help describes a default of None
    """
    return dataclasses.field(
        default=None, metadata={"short": short, "group": group, "metavar": metavar, "convert": convert, "help": help_text, "unset": unset}
    )


def shown(value, field):
    """A default as it would be typed."""
    if value is None:
        return field.metadata["unset"]
    if field.metadata["convert"] is on_off:
        return "on" if value else "off"
    return str(int(value)) if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------------------------------------------- the command line


def parse_flags(cls, argv, default):
    """The object of a dataclass of flags that the arguments (a list of str) describe; of a flag given twice the last value counts.

    default  function of a field: what it is when it is not given, in words
    Raises UserError for an unknown flag, naming the nearest known one, for a flag without a value, and for a value that breaks the flag's
    rule.
    """
    return cls(**{field.name: _convert(field, flag, text, default) for field, flag, text in _split(cls, argv)})


def _split(cls, argv):
    """Yield the arguments as triples (field, flag, text of its value).

    Every flag takes one value: `-b 4` or `-b=4`, `--batch-size 4` or `--batch-size=4`. Not left to argparse, which reads
    `-step 3` as `-s tep` and, in some versions of Python, `-1e-4` as a flag.
    """
    fields_by_flag = {flag: field for field in dataclasses.fields(cls) for flag in _flags(field)}
    remaining, after = iter(argv), None
    for argument in remaining:
        flag, equals, text = argument.partition("=")
        if flag not in fields_by_flag:
            raise UserError(_unknown_flag_message(argument, list(fields_by_flag), after))
        if not equals:
            text = next(remaining, None)
            if text is None or text in fields_by_flag:
                received = "nothing" if text is None else f"the flag {text}"
                raise UserError(f"{flag} needs a value, got {received}: see --help for what it takes")
        after = flag if fields_by_flag[flag].metadata["metavar"] == "PATTERN" else None
        yield fields_by_flag[flag], flag, text


def _unknown_flag_message(argument, known_flags, pattern_flag):
    """pattern_flag: the flag whose value came just before, if it takes a pattern of paths."""
    if not argument.startswith("-"):
        advice = f"quote the pattern after {pattern_flag}, or the shell replaces it by all its files" if pattern_flag else "see --help"
        return f"the command line consists of flags with one value each, got {argument!r} where a flag belongs: {advice}"
    argument = argument.partition("=")[0]
    # Upper case and underscores are the likeliest slips. A long flag is compared with long ones only, though a short one may share a larger
    # part of its few letters. With a cutoff of 0 there always is a nearest flag.
    tidied = argument.lower().replace("_", "-")
    candidates = [flag for flag in [*known_flags, "--help"] if flag.startswith("--") or not argument.startswith("--")]
    nearest = difflib.get_close_matches(tidied, candidates, n=1, cutoff=0.0)[0]
    return f"unknown flag {argument}: did you mean {nearest}? (--help lists all flags)"


def _convert(field, flag, text, default):
    try:
        return field.metadata["convert"](text)
    except ValueError as rule:
        received = text if len(text) <= 80 else text[:77] + "..."
        raise UserError(f"{flag} must be {rule}, got {received!r}: see --help ({default(field)})") from None


def help_text(cls, default, **texts):
    """The help of a dataclass of flags. default: as for parse_flags. texts: usage, description and epilog, as argparse takes them."""
    # argparse only formats it; parsing is done by _split.
    parser = argparse.ArgumentParser(add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter, **texts)
    groups = {}
    for field in dataclasses.fields(cls):
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(*_flags(field), metavar=field.metadata["metavar"], help=f"{field.metadata['help']} [{default(field)}]")
    return parser.format_help()


def _flags(field):
    """The flags of a field: the short one, if any, and the long one."""
    short = field.metadata["short"]
    long = "--" + field.name.replace("_", "-")
    return [long] if short is None else [short, long]
