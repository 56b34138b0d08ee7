"""A model of the time of a training step on N GPUs, based on measurements on 1, 2 and 4: docs/scaling.md. Run `python -m dev.scaling`.

The model is part of the package, for `python -m gpt2_numba.plan`: gpt2_numba/planning/figures.py (the inputs and their sources),
collectives.py (the cost of a message), many_gpus.py (the step). Here: figures.py (runs to compare with), one_gpu.py (measured times), step.py
(the models that were measured), report.py and planning_tables.py (tables).
"""
