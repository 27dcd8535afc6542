#!/bin/bash
#SBATCH --job-name=launchtax
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --exclusive
#SBATCH --time=01:00:00
# A sweep as an array job of Slurm: each task measures its share of the matrix, in a folder that all of them see. Tasks
# run in any order, and again: finished cells stay.
#
#   sbatch examples/slurm_array.sh results --model=study --batch=1,4
#   python -m bench.report results
folder=$1
shift
exec "${PYTHON:-python}" -m bench.sweep --out="$folder" \
    --shard="$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
