"""The exercises of chapter 07: the residual stream, and fusion."""

EXERCISES = ("residual_forward", "residual_backward", "fused", "alias")
