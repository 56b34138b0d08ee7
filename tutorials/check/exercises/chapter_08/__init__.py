"""The exercises of chapter 08, the fused classifier."""

EXERCISES = ("classifier_forward", "classifier_forward_backward", "padding", "accumulate_mean", "row_in_shared_memory")
