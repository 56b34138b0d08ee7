#!/usr/bin/env bash
# Slurm without PMIx, by TCP: the processes find each other at an address of the first host. No MPI at all.
#
#     sbatch dev/launch/slurm_tcp.sh [FLAG VALUE]...          further flags of gpt2_numba.train win over those below
#
# Needed: the hosts know the first one by its name, and the port below is free there. If not, take slurm_fs.sh.
#SBATCH --job-name=gpt2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
# Five minutes before the time is over the run is asked to stop: it writes a checkpoint. The same sbatch then goes on from it.
set -euo pipefail

PYTHON=python # of the environment that has gpt2_numba, such as .venv/bin/python

FLAGS=(
    -i 'data/mine_train_*.bin' -j 'data/mine_val_*.bin'
    -e d48 -b 16 -t 1024 -d 1048576 -r 0        # -d, the tokens of an update over all GPUs, is a multiple of B * T * GPUs
    -l 0.0006 -u 700 -q 0.1 -c 0.1
    -z 1
    -o log1558M -n 1000 -nk 3 -y 1              # a checkpoint every 1,000 steps; -y 1 goes on from the newest, if there is one
)

read -r HOST < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # the first host: rank 0 runs there
PORT=$((20000 + SLURM_JOB_ID % 20000))                          # another for each job, since two jobs may share a host
MEETING=(-pi tcp -ps "$HOST:$PORT" -pn "$SLURM_NTASKS" -pg "$SLURM_NTASKS_PER_NODE")

# The inner bash runs once in each process: only there is SLURM_PROCID the rank.
srun --mpi=none --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash -c 'exec "$0" -m gpt2_numba.train "$@" -pr "$SLURM_PROCID"' "$PYTHON" "${MEETING[@]}" "${FLAGS[@]}" "$@"
