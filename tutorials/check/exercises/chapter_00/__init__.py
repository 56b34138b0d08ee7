"""The exercises of chapter 00, a GPU in Numba."""

EXERCISES = (
    "double", "many_blocks", "2d", "shift", "coalesced", "shared_reverse", "block_sum", "find_the_barrier", "row_sum", "float32",
)  # fmt: skip
