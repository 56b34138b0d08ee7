"""Harder logits for the two functions of the classifier than those of layer_checks."""

from dataclasses import dataclass, replace

import numpy as np

from tutorials.check.layer_exercises import LayerExercise


@dataclass(frozen=True, kw_only=True)
class LowLogitsExercise(LayerExercise):
    """A LayerExercise whose last row is far below 0, where exp of a logit is 0 in float32, and ends in NaN, if there is padding."""

    def calls(self, function, size):
        for call in super().calls(function, size):
            logits = call.tensors["logits"].values.copy()
            logits[-1] -= 300
            logits[-1, size.V :][-1:] = np.nan
            yield replace(call, tensors={**call.tensors, "logits": replace(call.tensors["logits"], values=logits)})
