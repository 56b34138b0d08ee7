#!/usr/bin/env bash
# Slurm without PMIx and without MPI, by a shared directory: rank 0 leaves its address and a free port where all hosts see them.
#
#     sbatch dev/launch/slurm_fs.sh [FLAG VALUE]...           flags of gpt2_numba.train override those below
#
#SBATCH --job-name=gpt2
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
# --signal: five minutes before its time is up the run writes a checkpoint and stops. The same sbatch resumes from it.
set -euo pipefail

PYTHON=python        # of the environment with gpt2_numba, such as .venv/bin/python
MEET_IN=$PWD/meeting # on a file system that all hosts share; one directory serves all jobs

FLAGS=(
    -i 'data/mine_train_*.bin' -j 'data/mine_val_*.bin'
    -e d48 -b 16 -t 1024 -d 1048576 -r 0        # -d, the tokens per step over all GPUs: a multiple of B * T * GPUs
    -l 0.0006 -u 700 -q 0.1 -c 0.1
    -z 1
    -o log1558M -n 1000 -nk 3 -y 1              # a checkpoint every 1,000 steps; -y 1 resumes from the newest, if there is one
)

mkdir -p "$MEET_IN"
MEETING=(-pi fs -pf "$MEET_IN" -pn "$SLURM_NTASKS" -pg "$SLURM_NTASKS_PER_NODE")

# The inner bash runs in each process: only there does SLURM_PROCID hold its rank.
srun --mpi=none --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash -c 'exec "$0" -m gpt2_numba.train "$@" -pr "$SLURM_PROCID"' "$PYTHON" "${MEETING[@]}" "${FLAGS[@]}" "$@"
