"""The exercises of chapter 04, the linear layer."""

EXERCISES = ("matmul_forward", "matmul_backward", "tile", "tile_edges", "tf32_numpy")
