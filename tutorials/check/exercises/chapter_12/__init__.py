"""The exercises of chapter 12, many GPUs."""

EXERCISES = ("mean_of_losses", "ring_all_reduce", "shares", "zero_step")
