#!/usr/bin/env bash
# Slurm with PMIx: srun starts the processes and assigns their ranks; mpirun is not needed.
#
#     sbatch dev/launch/slurm_pmix.sh [FLAG VALUE]...         flags of gpt2_numba.train override those below
#
# `srun --mpi=list` shows whether this cluster has pmix; if not, use slurm_tcp.sh or slurm_fs.sh.
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

# --kill-on-bad-exit: when one process fails, Slurm kills the others. srun does not inherit --cpus-per-task from sbatch.
srun --mpi=pmix --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" "$PYTHON" -m gpt2_numba.train "${FLAGS[@]}" "$@"
