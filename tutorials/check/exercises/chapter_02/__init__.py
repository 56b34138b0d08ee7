"""The exercises of chapter 02, the encoder."""

EXERCISES = ("encoder_forward", "lost_sums", "count_tokens", "encoder_backward", "sort_places", "sorted_rows")
