"""The exercises of chapter 06, attention."""

EXERCISES = ("softmax_backward_numpy", "online_softmax", "find_the_rescale", "attention_forward", "attention_backward")
