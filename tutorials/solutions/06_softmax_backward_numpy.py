"""The gradient of the scores, through the softmax, in NumPy.

    att[t, s] = exp(score[t, s]) / Σ_r exp(score[t, r])

Given are `att`, the weights, and `datt`, the gradient of the loss with respect to them: NumPy arrays in float64, both of shape (B, NH, T,
T), the last axis over the keys. A weight is 0 where the key comes after the query. Return `dscore`, a new array of the same shape: how much
the loss changes if score[t, s] rises by ε, divided by ε. One line is enough, and no array of more than B · NH · T² numbers is needed. The
inputs must not change.

    python -m tutorials.check 06_softmax_backward_numpy
"""


def softmax_backward(att, datt):
    """dscore (B, NH, T, T), from att and datt of that shape."""
    # your lines:
    return att * (datt - (att * datt).sum(axis=3, keepdims=True))
    # end of your lines
