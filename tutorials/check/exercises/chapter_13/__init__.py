"""The exercises of chapter 13: how fast could it be?"""

EXERCISES = ("bytes_and_flops", "roofline", "occupancy", "read_ptx", "float64")
