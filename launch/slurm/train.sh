#!/usr/bin/env bash
# Trains on a SLURM cluster; saves, requeues and resumes when preempted or out of time.
#
#   launch/slurm/train.sh --nodes 4 --gpus-per-node 8 --time 12:00:00 -- 7b --name faces --data.batch-size 128
#   launch/slurm/train.sh --settings launch/slurm/settings.example --dry-run -- nano
#
# One task a node sees all its GPUs; with --tasks-per-node equal to --gpus-per-node each task has one. Both work.
# --notice is how many seconds before the time limit training saves. --env "A=1 B=2" sets variables, --setup runs a
# line first ("module load cuda"), --sbatch adds one more sbatch option.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/lib.sh
source "$here/../lib.sh"
# shellcheck source=launch/slurm/job.sh
source "$here/job.sh"
opt[name]=fi-jax-train
start train "$@"
