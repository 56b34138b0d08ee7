"""What does a run cost?

Given:

    parameters     of the model                          L, C, T        its layers and channels, and the tokens of a sequence
    tokens         that there are to train on            batch_tokens   tokens of a step
    gpus           that share the work                   peak           FLOP per second of one GPU, from its data sheet
    mfu            the share of the peak that is reached, from 0 to 1
    price          dollars for an hour of one GPU

A token costs 6 FLOP for each parameter and 6 C T for each layer, for attention. Steps are whole ones: tokens that do not fill a step are
left over, and are neither trained on nor paid for. Return a dict:

    "steps"     an integer
    "flop"      of all steps together
    "hours"     from the first step to the last
    "dollars"   for all GPUs

    python -m tutorials.check 14_plan
"""


def plan(parameters, L, C, T, tokens, batch_tokens, gpus, peak, mfu, price):
    """{"steps": ..., "flop": ..., "hours": ..., "dollars": ...}."""
    # your lines:
    # end of your lines
