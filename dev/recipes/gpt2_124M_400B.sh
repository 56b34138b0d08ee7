#!/usr/bin/env bash
# GPT-2 124M on 419 billion tokens: how far does the smallest model get if it is trained forty times longer? 400,000 steps of 1,048,576
# tokens, four passes over the 100-billion-token sample of FineWeb-Edu (200 GB). How it is used: see gpt2_124M.sh.
#
# In so long a run a single bad batch can throw the model back. Such steps are left out here, and the newest five checkpoints are kept, so that
# one can go back to before a loss that rises. python -m gpt2_numba.plot shows the z-scores.
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

NAME=gpt2_124M_400B GPUS=${GPUS:-8}
CORPUS=(fineweb-edu-100B) ARRIVING=yes SHARDS=data/fineweb_edu TOKENIZER=gpt2
QUESTIONS=data/hellaswag_val.bin QUESTION_SOURCE=(hellaswag)
PROMPT="Once upon a time"
FLAGS=(
    -e d12 -b 64 -t 1024 -d 1048576
    -x 400000 -u 700 -l 0.0006 -q 0.0
    -c 0.1 -r 0 -z 1
    -sl 5 -sg 5                       # outliers beyond 5 standard deviations
    -n 5000 -nk 5 -nm 50000 -v 250 -s 20000 -g 144
)
cook "$@"
