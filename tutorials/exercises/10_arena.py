"""One piece of memory for everything.

`place(sizes, first, last)` puts arrays into one piece of memory. Array number i has `sizes[i]` bytes, at least 1, and is needed from moment
`first[i]` to moment `last[i]`, both included; first[i] <= last[i]. Two arrays that are needed at the same moment must not share a byte; two
that are not may have the same bytes. All three are lists of ints of the same length, which may be 0, and are only read [r].

Go through the arrays in their order. Each is given the lowest offset

    that is a multiple of 256 (0 is one), and
    at which none of its bytes, offset to offset + size - 1, belongs to an array placed before it and needed at a moment at which this one is

Where such arrays leave a gap that is large enough, the gap is taken. Return (offsets, total): the list of the offsets, in the order of the
arrays, and the bytes to allocate: the end of the array that ends last, rounded up to a multiple of 256 (0 if there are no arrays).

On paper: sizes 300, 100, 200, needed in moments 0 to 1, 1 to 2 and 2 to 3. The first lies at 0. The second is needed in moment 1, too: the
lowest multiple of 256 that is free is 512. The third shares no moment with the first: it lies at 0, in the first one's memory. Total 768.

    python -m tutorials.check 10_arena
"""

ALIGNMENT = 256


def place(sizes, first, last):
    """Lists of ints of one length: bytes, first and last moment of each array. Returns (offsets, total)."""
    # your lines:
    # end of your lines
