"""A model of the time of a training step on N GPUs, based on measurements on 1, 2 and 4: docs/scaling.md. Run `python -m dev.scaling`.

Reading order: figures.py (the inputs and their sources), collectives.py (the cost of a message), step.py (the step), report.py (tables).
"""
