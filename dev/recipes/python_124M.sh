#!/usr/bin/env bash
# GPT-2 124M that writes Python, in twenty minutes of one H200, without a network: the text is what Python and its packages have installed on
# this machine, 100 to 160 million tokens where PyTorch is. docs/a_real_run.md shows a run of it.
#
#     dev/recipes/python_124M.sh --rehearse      all steps in a minute, tiny
#     dev/recipes/python_124M.sh
#
# The batch is a quarter of the one that large texts are trained with: in so short a time more steps count for more than smoother ones. Each
# token is seen three to five times.
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

NAME=python_124M GPUS=${GPUS:-1}
CORPUS=(python) ARRIVING=no SHARDS=data/python TOKENIZER=gpt2
PROMPT="def is_prime(n):"
FLAGS=(
    -e d12 -b 64 -t 1024 -d 131072    # two micro-batches a step
    -x 4000 -u 200 -l 0.001 -q 0.0    # warm-up, then a cosine from 1e-3 to 0
    -c 0.1 -r 0
    -n 200 -nk 2 -nm 400              # every second checkpoint is kept, so that one can ask what the model could at that step
    -v 100 -s 200 -g 200 --stats-every 200 -lg 200
)
cook "$@"
