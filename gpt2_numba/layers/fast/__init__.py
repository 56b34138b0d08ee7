"""The layers again, for speed: bfloat16 or float32, device arrays only, compute capability 8.0 and later.

Each file has the name of its layer and begins with what is different from the plain kernels and what each difference gains. Read the
layer's own file first, for the mathematics. The ladder (dev/kernels) leads from the plain kernel to the fast one in steps.
"""
