"""The exercises of chapter 00, a GPU in Numba."""
