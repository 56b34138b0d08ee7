#!/usr/bin/env bash
# GPT-2 350M on 31 billion tokens of FineWeb: 60,000 steps, a third of the 100-billion-token sample (200 GB, of which 63 GB are read).
# To beat: GPT-2's own validation loss on this text, 3.083, and 37.5 % on HellaSwag. How it is used: see gpt2_124M.sh.
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

NAME=gpt2_350M GPUS=${GPUS:-8}
CORPUS=(fineweb-100B --shards 320) ARRIVING=yes SHARDS=data/fineweb_100B TOKENIZER=gpt2
QUESTIONS=data/hellaswag_val.bin QUESTION_SOURCE=(hellaswag)
PROMPT="Once upon a time"
FLAGS=(
    -e d24 -b 64 -t 1024 -d 524288
    -x 60000 -u 700 -l 0.0003 -q 0.0  # the larger the model, the smaller the learning rate
    -c 0.1 -r 0 -z 1
    -n 2000 -nk 3 -v 250 -s 10000 -g 144
)
cook "$@"
