"""The exercises of chapter 10, the training loop."""

EXERCISES = ("accumulate", "find_the_zero", "learning_rate", "arena")
