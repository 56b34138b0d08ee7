#!/usr/bin/env bash
# Several hosts: mpirun reaches them by ssh and starts one process for each GPU.
#
#     dev/launch/multi_node_mpirun.sh [FLAG VALUE]...         flags of gpt2_numba.train override those below
#
# Requires: ssh without a password from this host to the others; this directory and the Python environment at the same paths on all hosts;
# a log directory (-o) that all of them see. The data may be copied to each host, at the same path.
# HOSTFILE has a line for each host, with slots = its GPUs:
#     a17 slots=8
#     a18 slots=8
# To stop with a checkpoint: kill -USR1 PID_OF_MPIRUN. Ctrl-C kills the processes within half a second, without one.
set -euo pipefail

PYTHON=$PWD/.venv/bin/python # absolute paths: the other hosts start in the environment of a plain ssh login
MPIRUN=$PWD/.venv/bin/mpirun # called by its absolute path, it finds its own parts on the other hosts too
HOSTFILE=hosts.txt
GPUS=16                      # over all hosts
INTERFACE=eth0               # the network interface between the hosts, as `ip address` names it

FLAGS=(
    -i 'data/mine_train_*.bin' -j 'data/mine_val_*.bin'
    -e d48 -b 16 -t 1024 -d 1048576 -r 0        # -d, the tokens per step over all GPUs: a multiple of B * T * GPUs
    -l 0.0006 -u 700 -q 0.1 -c 0.1
    -z 1
    -o log1558M -n 1000 -nk 3 -y 1              # a checkpoint every 1,000 steps; -y 1 resumes from the newest, if there is one
)

# -x exports a variable to all processes. NCCL_DEBUG=WARN shows why a connection fails, INFO also which network is used.
exec "$MPIRUN" -np "$GPUS" --hostfile "$HOSTFILE" --bind-to none -x NCCL_SOCKET_IFNAME="$INTERFACE" -x NCCL_DEBUG=WARN \
    "$PYTHON" -m gpt2_numba.train "${FLAGS[@]}" "$@"
