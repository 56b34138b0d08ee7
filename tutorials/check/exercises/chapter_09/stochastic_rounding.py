"""09_stochastic_rounding: a carry that is drawn by lot."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np

from gpt2_numba.layer_checks.running import GuardedArray
from tutorials.check.exercise import Counts, Exercise, Wrong, read, written
from tutorials.check.failures import Failure

SPECIAL = np.array([  # bits of a number, noise
    (0x7F7FFFFF, 0x12345678), (0x7F7FFFFF, 0xABCD0000),  # the largest finite one, which may become infinity
    (0x7F800000, 0xFFFFFFFF), (0xFF800000, 0xFFFFFFFF),  # infinities
    (0x7FFFFFFF, 0x00000001), (0x7FFF8001, 0x0000FFFF), (0x7FC00000, 0xFFFFFFFF),  # NaNs, the first as GPUs make it
    (0x80000000, 0xFFFFFFFF), (0x00000000, 0xFFFFFFFF), (0x00000001, 0x0000FFFF), (0x3F800000, 0x0000FFFF), (0xBF810000, 0x0000FFFF),
    (0x3F804000, 0x0000C000), (0x3F804000, 0x0000BFFF), (0xBF80C000, 0x00004000), (0xBF80C000, 0x00003FFF),  # the sum is 65,536, or one less
    (0x3F80FFFF, 0x00010000), (0x3F800001, 0xFFFF0000), (0x3F80FFFF, 0x00000001),
], np.uint32)  # fmt: skip
ADDED = "        if value == value:\n            bits += noise[i] & LOWER_16\n"


def arrays(random, count):
    normal = (random.standard_normal(count) * 10.0 ** random.integers(-8, 8, count)).astype(np.float32).view(np.uint32)
    bits, noise = (np.concatenate(parts) for parts in zip((normal, random.integers(2**32, size=count, dtype=np.uint32)), SPECIAL.T))
    return {"out": written(len(bits), kind="u32"), "inp": read(bits.view(np.float32)), "noise": read(noise, "u32")}


def made(rule, nan_too=False):
    """A result, from a rule of (bits, noise), both uint64. NaN is cut off."""

    def result(inp, noise):
        bits = inp.astype(np.float32).view(np.uint32).astype(np.uint64)
        is_nan = np.isnan(inp) & (not nan_too)
        return {"out": (np.where(is_nan, bits, rule(bits, noise.astype(np.uint64))) & np.uint64(0xFFFFFFFF)) >> np.uint64(16)}

    return result


LOW = np.uint64(0xFFFF)
right = made(lambda bits, noise: bits + (noise & LOW))
MASK = "Keep the lower half of the noise only, noise[i] & LOWER_16, before it is added."
KNOWN = {  # what it is: the hint, and the result
    "that only cuts off: where is the noise?": (
        "Add noise[i] & LOWER_16 to the bits before they are moved down.",
        made(lambda bits, noise: bits),
    ),
    "that is to nearest": (
        "Half a unit is added here, always the same number: add noise[i] & LOWER_16.",
        made(lambda bits, noise: bits + 0x8000),
    ),
    "all 32 bits of the noise have been added, and not only the lower 16": (MASK, made(lambda bits, noise: bits + noise)),
    "that is with the upper 16 bits of the noise": (MASK, made(lambda bits, noise: bits + (noise >> np.uint64(16)))),
    "the noise has carried through all the ones of a NaN, into the sign": (
        "A NaN gets no noise: ask whether the value differs from itself before you add.",
        made(lambda bits, noise: bits + (noise & LOW), nan_too=True),
    ),
    "it went on where rest > noise": (
        "rest + noise must be 65,536 or more. Comparing rest with noise has the right share of cases, but not the same ones.",
        made(lambda bits, noise: bits + np.where(bits & LOW > noise & LOW, np.uint64(0x10000), np.uint64(0))),
    ),
    "the upper 16 bits are stored where they were": (
        "The upper half must be moved down: >> SIXTEEN.",
        lambda inp, noise: {"out": right(inp, noise)["out"] << np.uint64(16)},
    ),
}


@dataclass(frozen=True, kw_only=True)
class BitsExercise(Exercise):
    """An Exercise whose result is shown in hexadecimal digits, with the name of the mistake where there is one."""

    def calls(self, function, size):
        for call in super().calls(function, size):
            yield replace(call, check=check_bits)


def check_bits(call, storage):
    """Launch once. Raises Failure for the first wrong number."""
    arrays = {name: GuardedArray(tensor, storage) for name, tensor in call.tensors.items()}
    call.launch(SimpleNamespace(**{name: array.array for name, array in arrays.items()}))
    for name, array in arrays.items():
        if problem := array.problem(array.fetch()):
            raise Failure("input", f"{name}: {problem}")
    inp, noise = (call.tensors[name].values for name in ("inp", "noise"))
    out, due = arrays["out"].array.copy_to_host(), right(inp, noise)["out"]
    if not out.any():
        raise Failure("not written", "out is as it was: nothing has been written")
    if (wrong := np.flatnonzero(out != due)).size:
        i = wrong[0]
        what, hint = next(
            ((f"\n    {name}", hint) for name, (hint, rule) in KNOWN.items() if np.array_equal(out, rule(inp, noise)["out"])), ("", "")
        )
        bits = f"inp has the bits 0x{inp.view(np.uint32)[i]:08X}, the noise 0x{noise[i]:08X}"
        failure = Failure("value", f"out[{i}] is 0x{out[i]:04X}, and must be 0x{due[i]:04X}: {bits}{what}")
        failure.hint = hint
        raise failure
    return []


EXERCISE = BitsExercise(
    function="round_stochastically",
    arrays=arrays,
    reference=right,
    sizes=({"count": 5}, {"count": 1}, {"count": 46}, {"count": 200}),
    least=Counts(global_reads=2, global_writes=1),
    most=Counts(global_reads=3, global_writes=1),
    least_transactions=84,
    most_barriers=0,
    hints={
        "": (
            "bits = bits_of_float(inp[i]). Which 16 bits of the noise are added, and which 16 bits of the sum are stored?",
            "noise[i] & LOWER_16 is a number from 0 to 65,535. The sum's upper half is sum >> SIXTEEN.",
            "if value == value: bits += noise[i] & LOWER_16",
        ),
        "value": (
            "On paper: bits 0x3F80C000, noise 0x4000. The sum is 0x3F810000: it carries, and 0x3F81 is stored. With noise 0x3FFF it does not.",
            "Infinity and numbers whose lower 16 bits are 0 cannot carry: they stay as they are, whatever the noise.",
        ),
        "bounds": ("Thread i has number i, and that one alone; the last block has threads without a number: if i < inp.shape[0].",),
        "accesses": ("Each thread has its own number. Read inp[i] once, into a variable, and write out[i] once, at the end.",),
        "barriers": ("No thread needs what another one has: no barrier is needed.",),
        "float64": ("There is no need for arithmetic with floats: the bits are integers.",),
    },
    wrong=(
        Wrong("cut off", {ADDED: ""}, "value", "before they are moved"),
        Wrong("to nearest", {"noise[i] & LOWER_16": "np.uint32(0x8000)"}, "value", "always the same number"),
        Wrong("all of the noise", {"noise[i] & LOWER_16": "noise[i]"}, "value", "lower half of the noise"),
        Wrong("the upper half of the noise", {"noise[i] & LOWER_16": "noise[i] >> SIXTEEN"}, "value", "lower half of the noise"),
        Wrong("rest > noise", {ADDED: "        up = (bits & LOWER_16) > (noise[i] & LOWER_16)\n", "= bits >> SIXTEEN": "= (bits >> SIXTEEN) + (up if value == "
            "value else 0)"}, "value", "not the same ones"),
        Wrong("15 bits of noise", {"LOWER_16, SIXTEEN = np.uint32(0xFFFF)": "LOWER_16, SIXTEEN = np.uint32(0x7FFF)"}, "value"),
        Wrong("NaN becomes -0", {"        if value == value:\n    ": ""}, "value", "differs from itself"),
        Wrong("only positive numbers get noise", {"value == value": "value == value and value > np.float32(0)"}, "value"),
        Wrong("one case too few", {ADDED: "        up = (bits & LOWER_16) + (noise[i] & LOWER_16) > np.uint32(0x10000)\n", "= bits >> SIXTEEN": "= (bits >> SIXTEEN) + (up if value == "
            "value else 0)"}, "value"),
        Wrong("NaN becomes infinity", {"out[i] = bits >> SIXTEEN": "out[i] = bits >> SIXTEEN if value == value "
            "else np.uint32(0x7F80)"}, "value"),
        Wrong("one NaN only", {"if value == value": "if bits != np.uint32(0x7FFFFFFF)"}, "value"),
        Wrong("towards 0", {"bits += noise": "bits -= noise"}, "value"),
        Wrong("the neighbour's noise", {"noise[i] &": "noise[(i + 1) % inp.shape[0]] &"}, "value"),
        Wrong("one noise for all", {"noise[i] &": "noise[0] &"}, "value"),
        Wrong("the lower half is stored", {"bits >> SIXTEEN": "bits & LOWER_16"}, "value"),
        Wrong("all 32 bits are stored", {"bits >> SIXTEEN": "bits & ~LOWER_16"}, "value", "moved down"),
        Wrong("nothing is moved down", {"bits >> SIXTEEN": "bits"}, "value"),
        Wrong("nothing is stored", {"        out[i] = bits >> SIXTEEN\n": ""}, "not written"),
        Wrong("beyond the end", {"noise[i] &": "noise[i + 1] &"}, "bounds", "that one alone"),
        Wrong("in the input", {"value = inp[i]": "value = inp[i]\n        inp[i] = value + value"}, "input"),
    ),
)  # fmt: skip
