#!/usr/bin/env bash
# Evaluates on a SLURM cluster.
#
#   launch/slurm/evaluate.sh --gpus-per-node 1 -- nano --checkpoint runs/faces --dataset utkface --data-root data/utkface
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/lib.sh
source "$here/../lib.sh"
# shellcheck source=launch/slurm/job.sh
source "$here/job.sh"
opt[name]=fi-jax-evaluate
start evaluate "$@"
