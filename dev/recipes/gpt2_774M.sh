#!/usr/bin/env bash
# GPT-2 774M on 150 billion tokens of FineWeb: 286,102 steps, one and a half passes over the 100-billion-token sample (200 GB).
# To beat: GPT-2's own validation loss on this text, 3.001, and 43.2 % on HellaSwag. How it is used: see gpt2_124M.sh.
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

NAME=gpt2_774M GPUS=${GPUS:-8}
CORPUS=(fineweb-100B) ARRIVING=yes SHARDS=data/fineweb_100B TOKENIZER=gpt2
QUESTIONS=data/hellaswag_val.bin QUESTION_SOURCE=(hellaswag)
PROMPT="Once upon a time"
FLAGS=(
    -e d36 -b 32 -t 1024 -d 524288
    -x 286102 -u 700 -l 0.00025 -q 0.0
    -c 0.1 -r 0 -z 1
    -n 4000 -nk 3 -v 250 -s 20000 -g 144
)
cook "$@"
