"""The exercises of chapter 11, bits."""

EXERCISES = ("ulp", "fixed_order_sum", "first_difference", "resume")
