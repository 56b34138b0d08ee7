"""What a training will need, before it starts: memory, time, price (python -m gpt2_numba.plan).

request.py       the command line: the trainer's flags and a few of its own; what is not given is chosen
cards.py         GPUs, as published
measured.py      what was measured of this program, on which card and when
parts.py         the parts of a step: their bytes and FLOP
one_gpu.py       the time of a step on one GPU, divided as the next two need it
predict.py       that time for any model on any card, from the measured shares of the limits
collectives.py, many_gpus.py, figures.py     the time on several GPUs: docs/scaling.md
layers_alike.py  what a GPU keeps of a model, by the partition of parallel/shards.py, in the time of one layer
memory.py        memory, by the arena's own arithmetic, and how to need less
checks.py        what does not fit together
report.py        the plan as text
"""
