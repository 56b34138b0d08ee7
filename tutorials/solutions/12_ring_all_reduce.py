"""An all-reduce round the ring.

parts[rank][part] is an array, float64: process `rank`'s part `part` of a long array, which all processes cut into as many parts as there are
processes, at the same places. (Parts may have different lengths.) Afterwards parts[rank][part] must be the sum of that part over all
processes, at each of them. Change the lists or the arrays in place. There may be one process only; then nothing is to be done.

Processes see each other's numbers only through `pass_to_the_right`, which is given: each sends one message, an array, and receives the one
that its left neighbour has sent. (parts[rank] is for messages and sums of process `rank` alone.) The check counts what is sent, so do it in
two rounds, as in section 3:

    1. ranks - 1 times: each process sends a part, and adds the part that comes to its own. It begins with part rank - 1, and then always
       sends on what it has just added up. In the end process r has the whole sum of part r.
    2. ranks - 1 times: the same, but whole sums are sent, and copied instead of added. It begins with part rank.

Parts are counted in a circle: before part 0 comes the last one, which is what % ranks does. Return how many numbers each process has sent, a
list by rank.

    python -m tutorials.check 12_ring_all_reduce
"""

import numpy as np


def ring_all_reduce(parts):
    """parts: a list of lists of arrays [+] -> how many numbers each process has sent."""
    ranks = len(parts)
    sent = [0] * ranks

    def pass_to_the_right(messages):
        """messages[rank]: the array that a process sends. Returns the list of those that they receive."""
        for rank, message in enumerate(messages):
            sent[rank] += len(message)
        return [np.array(messages[rank - 1]) for rank in range(ranks)]  # messages[-1] is the last one: it is a ring

    # your lines:
    for step in range(ranks - 1):
        received = pass_to_the_right([parts[rank][(rank - 1 - step) % ranks] for rank in range(ranks)])
        for rank in range(ranks):
            parts[rank][(rank - 2 - step) % ranks] += received[rank]
    for step in range(ranks - 1):
        received = pass_to_the_right([parts[rank][(rank - step) % ranks] for rank in range(ranks)])
        for rank in range(ranks):
            parts[rank][(rank - 1 - step) % ranks] = received[rank]
    # end of your lines
    return sent
