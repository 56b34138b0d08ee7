"""What the kernels are built on. If you have never programmed a GPU, read docs/primer.md first.

The plain kernels of the layers need only block_sum.py from here, and argument_checks.py and backend.py around them. The rest serves the
fast kernels and the model:

    on the device    memory_access.py      loads and stores of eight elements, float32 or bfloat16
                     reductions.py         sums over warps, blocks and rows in a fixed order
                     shared_memory.py  tensor_cores.py  wgmma.py        asynchronous copies and matrix instructions
                     stochastic_rounding.py  float32_math.py  ranges.py  inline_ptx.py
    on the host      arena.py              all arrays of a model in one allocation
                     gemm.py               matrix products: cublaslt.py and matmul_search.py, or NumPy in the simulator
                     graph.py              a pass recorded as a CUDA graph and replayed
                     staging.py  moment.py                               copies and clocks that do not wait
                     kernel_cache.py  claims.py                              compiled kernels on disk; who compiles which
    without a GPU    simulator.py          Numba's simulator, faster and stricter; race_detector.py watches it
                     detect_gpu.py         is there a GPU, asked before Numba is imported
                     described_gpu.py      a GPU of which only the description is there: it notes launches, for training/compile_ahead.py
"""
