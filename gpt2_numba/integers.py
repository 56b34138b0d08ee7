"""Integer arithmetic that sizes and launches need."""


def ceil_div(n, k):
    """How many groups of k are needed for n things: n / k, rounded up."""
    return -(-n // k)


def round_up(n, k):
    """The smallest multiple of k that is at least n."""
    return ceil_div(n, k) * k
