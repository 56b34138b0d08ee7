"""The exercises of chapter 09, AdamW."""

EXERCISES = ("bias_correction", "adamw_update", "sum_of_squares", "norm_and_scale", "stochastic_rounding")
