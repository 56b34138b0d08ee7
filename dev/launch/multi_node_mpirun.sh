#!/usr/bin/env bash
# Several hosts: mpirun reaches them by ssh and starts one process for each GPU.
#
#     dev/launch/multi_node_mpirun.sh [FLAG VALUE]...         further flags of gpt2_numba.train win over those below
#
# Needed: ssh from this host to the others without a password; this directory and the Python environment at the same paths on all of
# them; a log directory (-o) that all of them see. The data may lie on each host, at the same path.
# HOSTFILE has a line for each host, slots = its GPUs:
#     a17 slots=8
#     a18 slots=8
# To stop with a checkpoint: kill -USR1 PID_OF_MPIRUN. Ctrl-C ends the processes within half a second, without one.
set -euo pipefail

PYTHON=$PWD/.venv/bin/python # whole paths: the other hosts start in the home directory's environment
MPIRUN=$PWD/.venv/bin/mpirun # called by its whole path, it finds its own parts there on the other hosts, too
HOSTFILE=hosts.txt
GPUS=16                      # on all hosts together
INTERFACE=eth0               # the network by which the hosts reach each other, as `ip address` names it

FLAGS=(
    -i 'data/mine_train_*.bin' -j 'data/mine_val_*.bin'
    -e d48 -b 16 -t 1024 -d 1048576 -r 0        # -d, the tokens of an update over all GPUs, is a multiple of B * T * GPUS
    -l 0.0006 -u 700 -q 0.1 -c 0.1
    -z 1
    -o log1558M -n 1000 -nk 3 -y 1              # a checkpoint every 1,000 steps; -y 1 goes on from the newest, if there is one
)

# -x hands a variable to all processes. NCCL_DEBUG=WARN says why a connection fails; INFO shows which network is taken.
exec "$MPIRUN" -np "$GPUS" --hostfile "$HOSTFILE" --bind-to none -x NCCL_SOCKET_IFNAME="$INTERFACE" -x NCCL_DEBUG=WARN \
    "$PYTHON" -m gpt2_numba.train "${FLAGS[@]}" "$@"
