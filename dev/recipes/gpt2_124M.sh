#!/usr/bin/env bash
# GPT-2 124M on 10 billion tokens of FineWeb: llm.c's reproduction of GPT-2. 18,900 steps of 524,288 tokens are one pass over the data (20 GB).
# To beat: GPT-2's own validation loss on this text, 3.425, and 29.4 % on HellaSwag.
#
#     python -m gpt2_numba.plan -e d12 -b 64 -d 524288 -x 18900 --gpus 8 --gpu h100     how long, how much memory, what price
#     dev/recipes/gpt2_124M.sh --rehearse                                               all steps in a minute, tiny
#     GPUS=1 dev/recipes/gpt2_124M.sh
#
# With less memory: -r 1 in FLAGS, then a smaller -b. The same model comes out, but for rounding; it only takes longer.
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

NAME=gpt2_124M GPUS=${GPUS:-8}
CORPUS=(fineweb-10B) ARRIVING=yes SHARDS=data/fineweb_10B TOKENIZER=gpt2
QUESTIONS=data/hellaswag_val.bin QUESTION_SOURCE=(hellaswag)
PROMPT="Once upon a time"
FLAGS=(
    -e d12 -b 64 -t 1024 -d 524288    # micro-batches of 64 rows: 8 GPUs need one each for a step
    -x 18900 -u 700 -l 0.0006 -q 0.0  # warm-up, then a cosine from 6e-4 to 0
    -c 0.1 -r 0 -z 1                  # weight decay; nothing is recomputed; each GPU keeps its part of the optimizer's state
    -n 1000 -nk 3 -v 250 -s 5000 -g 144
)
cook "$@"
