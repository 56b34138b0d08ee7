"""How long a training step takes on N GPUs: a model of it, from times measured on 1, 2 and 4. docs/scaling.md tells it; `python -m dev.scaling`.

Read figures.py (what goes in, and where each figure comes from), collectives.py (what a message costs), step.py (the step), report.py.
"""
