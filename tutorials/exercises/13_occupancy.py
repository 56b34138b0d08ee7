"""How many registers may a thread have?

A kernel is launched with blocks of `threads` threads, each block with `shared_bytes` bytes of shared memory. At least `warps` warps should be
on a multiprocessor of an H100 at a time. Return the largest number of registers of a thread, 1 to 255, with which they fit; 0 if they cannot
fit however few there are. (This is what the compiler finds out for `launch_bounds`.)

Only whole blocks run. A block's threads are warps of 32, the last of which may be partly empty, but takes as much room as a full one. The
limits of a multiprocessor (chapter 13, section 7):

    32 blocks; 64 warps; 228 KB of shared memory, handed out by 128 bytes, and each block takes 1,024 bytes more than it asks for;
    four quarters with 16,384 registers each. A warp is in one quarter, and takes 32 times the registers of a thread, rounded up to a
    multiple of 8 for each thread.

    python -m tutorials.check 13_occupancy
"""

BLOCKS, WARPS, SHARED_BYTES, QUARTERS, REGISTERS_OF_A_QUARTER = 32, 64, 228 * 1024, 4, 16_384
MOST_REGISTERS = 255  # of a thread


def rounded_up(number, unit):
    """The least multiple of unit that is not below number."""
    return (number + unit - 1) // unit * unit


def most_registers(threads, shared_bytes, warps):
    """The most registers of a thread with which at least `warps` warps fit, or 0."""
    # your lines:
    # end of your lines
