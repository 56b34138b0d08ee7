"""What python -m gpt2_numba.replay is made of. Read in this order:

recorded         what a log directory says about a run and its steps
rerun            the steps, made again by the run's own kernels
watching         every layer function of a model, called through one of ours; the names of its arrays
statistics       largest, rms, zeros and not finite of all that a step computes; where the first NaN is born
rows             which rows of the batch have an unusual loss, and the step without them
other_kernels    the other set of kernels: NumPy in float64, plain, fast, float32, a reader's own
calls            what each layer function computes, in textbook functions
bounds           how far off it may be
comparing        each layer through both sets, on the same input
tables           what is printed
"""
