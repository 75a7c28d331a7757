#!/usr/bin/env bash
# Runs many fi-jax commands as one SLURM job array: one line of a file, one job. Each requeues and resumes by itself.
#
#   launch/slurm/array.sh --commands runs.txt --parallel 8 --gpus-per-node 1
#
# runs.txt holds the arguments of fi-jax, a line each (empty lines and # comments are skipped):
#   train nano --name seed0 --train.seed 0
#   train nano --name seed1 --train.seed 1
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/lib.sh
source "$here/../lib.sh"
# shellcheck source=launch/slurm/job.sh
source "$here/job.sh"
opt[name]=fi-jax-array
opt[commands]=
opt[parallel]=0
parse "$@"
slurm_action && exit
[ ${#words[@]} -eq 0 ] || die "commands come from --commands FILE, not after '--'"
[ -n "${opt[commands]}" ] || die "give the file of commands: --commands FILE"
[ -f "${opt[commands]}" ] || die "no file '${opt[commands]}'"
mapfile -t lines < <(grep -vE '^[[:space:]]*(#|$)' "${opt[commands]}" || true)
[ ${#lines[@]} -gt 0 ] || die "file '${opt[commands]}' has no commands"
check_options
limit=
require --parallel "${opt[parallel]}" "$whole_number" "a whole number"
[ "${opt[parallel]}" = 0 ] || limit=%${opt[parallel]}

cases=()
for i in "${!lines[@]}"; do
  # xargs splits as a shell would, quotes included, and expands nothing.
  xargs printf '%s\0' <<<"${lines[i]}" >/dev/null 2>&1 ||
    die "line '${lines[i]}' of '${opt[commands]}' cannot be read; check its quotes"
  mapfile -t -d '' parts < <(xargs printf '%s\0' <<<"${lines[i]}")
  cases+=("  $i) words=($(quoted "${parts[@]}")) ;;")
done

{
  header
  echo "#SBATCH --array=0-$((${#lines[@]} - 1))$limit"
  environment
  # The lines are copied into the script: the file may change before the last job starts.
  # shellcheck disable=SC2016
  echo 'case $SLURM_ARRAY_TASK_ID in'
  printf '%s\n' "${cases[@]}"
  echo 'esac'
  body
} | submit %A_%a
