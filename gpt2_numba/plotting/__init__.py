"""What python -m gpt2_numba.plot is made of. Read in this order:

runs         the logs of a run, as series over steps, tokens or hours
published    figures of GPT-2 and GPT-3 to compare with
curves       one panel for each quantity, and the picture of all of them
layers       gradients and activations of every layer, as heat maps
page         an HTML page with all of this, and each run's settings and machine
"""
