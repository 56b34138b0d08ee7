#!/usr/bin/env bash
# One host with several GPUs: mpirun starts one process for each.
#
#     dev/launch/single_node_mpirun.sh [FLAG VALUE]...        further flags of gpt2_numba.train win over those below
#
# To stop with a checkpoint: kill -USR1 PID_OF_MPIRUN. Ctrl-C ends the processes within half a second, without one.
set -euo pipefail

PYTHON=python # of the environment that has gpt2_numba, such as .venv/bin/python
MPIRUN=mpirun # .venv/bin/mpirun, where it came with the environment
GPUS=8        # processes: as many as the host has GPUs, or fewer

FLAGS=(
    -i 'data/mine_train_*.bin' -j 'data/mine_val_*.bin'
    -e d12 -b 64 -t 1024 -d 524288 -r 0         # -d, the tokens of an update over all GPUs, is a multiple of B * T * GPUS
    -l 0.0006 -u 700 -q 0.1 -c 0.1
    -z 1                                        # each GPU keeps an eighth of the optimizer's state
    -o log124M -n 1000 -nk 3 -y 1               # a checkpoint every 1,000 steps; -y 1 goes on from the newest, if there is one
)

# --bind-to none: by default each process gets few cores, which the training, its reader of data and NCCL's threads would share.
# In a container, where everybody is root, Open MPI wants OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1.
exec "$MPIRUN" -np "$GPUS" --bind-to none "$PYTHON" -m gpt2_numba.train "${FLAGS[@]}" "$@"
