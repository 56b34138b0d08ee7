"""The exercises of chapter 14: the real thing."""

EXERCISES = ("plan", "spike", "bits_per_byte", "top_p")
