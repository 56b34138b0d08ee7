#!/usr/bin/env bash
# GPT-3 125M on 300 billion tokens of FineWeb: GPT-2 124M's twin with twice the context, trained as long as GPT-3 was. 572,204 steps, three
# passes over the 100-billion-token sample (200 GB). To beat: 33.7 % on HellaSwag. How it is used: see gpt2_124M.sh.
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

NAME=gpt3_125M GPUS=${GPUS:-8}
CORPUS=(fineweb-100B) ARRIVING=yes SHARDS=data/fineweb_100B TOKENIZER=gpt2
QUESTIONS=data/hellaswag_val.bin QUESTION_SOURCE=(hellaswag)
PROMPT="Once upon a time"
FLAGS=(
    -e gpt3:c768 -b 32 -t 2048 -d 524288
    -x 572204 -u 700 -l 0.0006 -q 0.1
    -c 0.1 -r 0 -z 1 -ge 1
    -sl 7 -sg 7                       # a step whose loss or gradient norm is 7 standard deviations above the recent ones is left out
    -n 10000 -nk 5 -nm 50000 -v 250 -s 20000 -g 144  # every 50,000th checkpoint is kept for good
)
cook "$@"
