#!/usr/bin/env bash
# One host with several GPUs: mpirun starts one process per GPU.
#
#     dev/launch/single_node_mpirun.sh [FLAG VALUE]...        flags of gpt2_numba.train override those below
#
# To stop with a checkpoint: kill -USR1 PID_OF_MPIRUN. Ctrl-C kills the processes within half a second, without one.
set -euo pipefail

PYTHON=python # of the environment with gpt2_numba, such as .venv/bin/python
MPIRUN=mpirun # or .venv/bin/mpirun, if it was installed into the environment
GPUS=8        # processes: the number of GPUs of the host, or fewer

FLAGS=(
    -i 'data/mine_train_*.bin' -j 'data/mine_val_*.bin'
    -e d12 -b 64 -t 1024 -d 524288 -r 0         # -d, the tokens per step over all GPUs: a multiple of B * T * GPUs
    -l 0.0006 -u 700 -q 0.1 -c 0.1
    -z 1                                        # each GPU keeps 1 / GPUS of the optimizer state
    -o log124M -n 1000 -nk 3 -y 1               # a checkpoint every 1,000 steps; -y 1 resumes from the newest, if there is one
)

# --bind-to none: by default each process gets few cores, too few for training, the data loader and NCCL's threads.
# As root, as in most containers, Open MPI requires OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1.
exec "$MPIRUN" -np "$GPUS" --bind-to none "$PYTHON" -m gpt2_numba.train "${FLAGS[@]}" "$@"
