"""13_occupancy: the most registers with which so many warps fit."""

from tutorials.check.exercise import Mistake, Wrong
from tutorials.check.host_exercises import host_exercise


def up(number, unit):
    return -(-number // unit) * unit


def most(threads, shared_bytes, warps, *, blocks=32, reserved=1024, unit=128, quarters=4, eights=8, partly=True):
    """The answer; with other keywords, that of a multiprocessor with other limits."""
    width = up(threads, 32) // 32 if partly else max(threads // 32, 1)
    fitting = min(blocks, 64 // width, 228 * 1024 // max(up(shared_bytes + reserved, unit), 1))
    for registers in range(255, 0, -1):
        warps_that_fit = quarters * (65_536 // quarters // (32 * up(registers, eights)))
        if min(fitting, warps_that_fit // width) * width >= warps:
            return registers
    return 0


def mistaken(**changed):
    return lambda **given: {"return": most(**given, **changed)}


SIZES = (
    (256, 0, 64),
    (256, 0, 48),
    (224, 0, 48),  # seven warps: registers are in quarters
    (224, 0, 42),
    (224, 0, 64),  # nine blocks are 63 warps
    (100, 0, 64),  # the fourth warp is partly empty
    (1024, 0, 32),
    (1024, 0, 33),  # two blocks
    (32, 0, 32),
    (32, 0, 33),  # 32 blocks at most
    (256, 28_160, 64),  # eight blocks: 28,160 + 1,024 each, of 233,472
    (256, 28_161, 64),
    (256, 29_184, 64),  # eight without the 1,024
    (512, 214_016, 16),
    (512, 214_016, 17),
    (128, 0, 4),
    (96, 5000, 27),
    (256, 32_276, 56),  # seven blocks, if memory were handed out by the byte
)

EXERCISE = host_exercise(
    function="most_registers",
    arguments=lambda random, **size: dict(size),
    reference=lambda **given: {"return": most(**given)},
    sizes=tuple({"threads": threads, "shared_bytes": shared_bytes, "warps": warps} for threads, shared_bytes, warps in SIZES),
    tolerance=0,
    hints={
        "": (
            "First turn it round: given a number of registers, how many blocks fit? Each limit allows some number, and the least of them "
            "counts. Then try 255, 254, ...",
            "Warps that fit into a quarter: 16,384 // (32 * registers, rounded up to a multiple of 8). Four quarters, then whole blocks.",
            "Blocks that fit into shared memory: 228 * 1024 // rounded_up(shared_bytes + 1024, 128).",
        ),
        "value": (
            "On paper: 48 warps in blocks of 8 are 6 blocks. 12 warps for each quarter, so 16,384 // 12 = 1,365 registers a warp, 42 a thread; "
            "and 40, as they are handed out by the eight.",
        ),
        "error": ("A number of registers of 0 divides by 0: 1 is the least.",),
        "not written": ("The function must return a number, 0 if nothing fits.",),
    },
    mistakes=(
        Mistake(mistaken(reserved=0), "Each block takes 1,024 bytes of shared memory more than it asks for."),
        Mistake(mistaken(quarters=1), "A warp is in one quarter: count the warps of a quarter, rounded down, four times."),
        Mistake(mistaken(eights=1), "Registers are handed out by the eight: a thread with 42 takes 48."),
        Mistake(mistaken(partly=False), "A block of 100 threads has four warps, the last of which is partly empty."),
        Mistake(mistaken(blocks=10**6), "No more than 32 blocks at a time."),
    ),
    wrong=(
        Wrong("no reserved memory", {"shared_bytes + 1024": "shared_bytes + 1"}, "value"),
        Wrong("no quarters", {"REGISTERS_OF_A_QUARTER // (32 * rounded_up(registers, 8))": "4 * REGISTERS_OF_A_QUARTER // (32 * rounded_up(registers, 8))",
            "QUARTERS * in_a_quarter": "in_a_quarter"}, "value", "four times"),
        Wrong("registers one by one", {"rounded_up(registers, 8)": "registers"}, "value", "by the eight"),
        Wrong("warps rounded down", {"rounded_up(threads, 32) // 32": "threads // 32"}, "value", "partly empty"),
        Wrong("any number of blocks", {"min(BLOCKS, WARPS": "min(10**6, WARPS"}, "value", "32 blocks"),
        Wrong("any number of warps", {"WARPS // warps_of_a_block": "BLOCKS"}, "value"),
        Wrong("shared memory by the byte", {"rounded_up(shared_bytes + 1024, 128)": "(shared_bytes + 1024)"}, "value"),
        Wrong("no shared memory", {"SHARED_BYTES // rounded_up(shared_bytes + 1024, 128)": "WARPS"}, "value"),
        Wrong("warps, not blocks", {"blocks = min(fitting, QUARTERS * in_a_quarter // warps_of_a_block)": "blocks = min(fitting, QUARTERS * in_a_quarter)"}, "value"),
        Wrong("more than so many", {">= warps:": "> warps:"}, "value"),
        Wrong("only exactly so many", {">= warps:": "== warps:"}, "value"),
        Wrong("from 256 on", {"range(MOST_REGISTERS, 0, -1)": "range(MOST_REGISTERS + 1, 0, -1)"}, "value"),
        Wrong("nothing, where nothing fits", {"    return 0\n": ""}, "not written", "0 if nothing fits"),
        Wrong("down to no register", {"range(MOST_REGISTERS, 0, -1)": "range(MOST_REGISTERS, -1, -1)"}, "error", "divides by 0"),
    ),
)  # fmt: skip
