#!/usr/bin/env bash
# A small model that writes Python, without a GPU and without a network: the Python sources installed on this machine, a byte a token, 1.9
# million parameters. Half an hour to an hour on a laptop; stop it at any time with Ctrl-C, and start it again to go on.
#
#     dev/recipes/laptop.sh --rehearse      all steps in a minute
#     dev/recipes/laptop.sh
. "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

NAME=laptop GPUS=0
CORPUS=(python --tokens 10M) ARRIVING=no SHARDS=data/python_bytes TOKENIZER=bytes
PROMPT="def "
FLAGS=(
    --device cpu -e L=6,NH=4,C=160 -b 16 -t 128 -d 2048
    -x 3000 -u 100 -l 0.002 -q 0.1
    -c 0.1 -n 500 -nk 2 -v 250 -m 20 -s 500 -g 200
)
cook "$@"
