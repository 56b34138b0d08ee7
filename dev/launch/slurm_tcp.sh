#!/usr/bin/env bash
# Slurm without PMIx and without MPI, by TCP: the processes meet at an address of the first host.
#
#     sbatch dev/launch/slurm_tcp.sh [FLAG VALUE]...          flags of gpt2_numba.train override those below
#
# Requires that the hosts can resolve the name of the first one, and that the port below is free on it. Otherwise use slurm_fs.sh.
#SBATCH --job-name=gpt2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
# --signal: five minutes before its time is up the run writes a checkpoint and stops. The same sbatch resumes from it.
set -euo pipefail

PYTHON=python # of the environment with gpt2_numba, such as .venv/bin/python

FLAGS=(
    -i 'data/mine_train_*.bin' -j 'data/mine_val_*.bin'
    -e d48 -b 16 -t 1024 -d 1048576 -r 0        # -d, the tokens per step over all GPUs: a multiple of B * T * GPUs
    -l 0.0006 -u 700 -q 0.1 -c 0.1
    -z 1
    -o log1558M -n 1000 -nk 3 -y 1              # a checkpoint every 1,000 steps; -y 1 resumes from the newest, if there is one
)

read -r HOST < <(scontrol show hostnames "$SLURM_JOB_NODELIST") # the first host, which runs rank 0
PORT=$((20000 + SLURM_JOB_ID % 20000))                          # differs between jobs, since two may share a host
MEETING=(-pi tcp -ps "$HOST:$PORT" -pn "$SLURM_NTASKS" -pg "$SLURM_NTASKS_PER_NODE")

# The inner bash runs in each process: only there does SLURM_PROCID hold its rank.
srun --mpi=none --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash -c 'exec "$0" -m gpt2_numba.train "$@" -pr "$SLURM_PROCID"' "$PYTHON" "${MEETING[@]}" "${FLAGS[@]}" "$@"
