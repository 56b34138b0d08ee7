"""The exercises of chapter 01, all of GPT-2 on one page."""

EXERCISES = "count_parameters", "rmsnorm_backward", "find_the_fault"
