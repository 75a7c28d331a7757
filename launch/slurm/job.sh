# shellcheck shell=bash
# One fi-jax command as a SLURM job: writes the batch script and submits it. Sourced by train.sh, evaluate.sh, array.sh.
#
# The job requeues itself when fi-jax saved and asked for it (exit status 75: SIGTERM ahead of the time limit, or
# preemption) or was not yet ready to (143), unless somebody cancelled it; SLURM requeues it when a node dies. Every
# start resumes from the last checkpoint.
# `action`, `target`, `words` and `dry_run` come from lib.sh.
# shellcheck disable=SC2154

declare -A opt=(
  [name]=fi-jax
  [nodes]=1
  [tasks-per-node]=1
  [gpus-per-node]=0
  [cpus-per-task]=""
  [mem]=""
  [time]=""
  [partition]=""
  [account]=""
  [notice]=180
  [max-restarts]=100
  [setup]=""
  [python]=python
  [env]=""
  [log-dir]=runs/slurm
  [sbatch]=""
)

# Jobs started from here carry this comment, so that --list and --delete leave others alone.
mark=fi-jax-launch

# Before anything is written: a script that ends in the middle must not be submitted.
check_options() {
  local name
  require --name "${opt[name]}" "$plain_name" "letters, digits, '.', '_' and '-'"
  for name in tasks-per-node notice max-restarts; do
    require "--$name" "${opt[$name]}" "$whole_number" "a whole number"
  done
  for name in nodes gpus-per-node cpus-per-task mem time partition account; do
    [ -z "${opt[$name]}" ] || require "--$name" "${opt[$name]}" "$one_word" "one word, as sbatch takes it"
  done
  read_env
}

header() {
  local line
  echo '#!/bin/bash'
  echo "#SBATCH --job-name=${opt[name]}"
  echo "#SBATCH --comment=$mark"
  echo "#SBATCH --nodes=${opt[nodes]}"
  echo "#SBATCH --ntasks-per-node=${opt[tasks-per-node]}"
  [ "${opt[gpus-per-node]}" = 0 ] || echo "#SBATCH --gpus-per-node=${opt[gpus-per-node]}"
  for line in cpus-per-task mem time partition account; do
    [ -z "${opt[$line]}" ] || echo "#SBATCH --$line=${opt[$line]}"
  done
  echo "#SBATCH --requeue"
  echo "#SBATCH --open-mode=append"
  # To the tasks, not to this script, this long before the time limit.
  echo "#SBATCH --signal=TERM@${opt[notice]}"
  [ -z "${opt[sbatch]}" ] || echo "#SBATCH ${opt[sbatch]}"
}

environment() {
  local pair
  echo 'set -u'
  echo 'export PYTHONUNBUFFERED=1'
  for pair in "${pairs[@]}"; do printf 'export %s=%q\n' "${pair%%=*}" "${pair#*=}"; done
  [ -z "${opt[setup]}" ] || echo "${opt[setup]}"
}

# The end of every batch script: run the step, requeue when asked to.
body() {
  # Dollar signs here belong to the script that runs on the cluster.
  cat <<'EOF'
echo "start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST: fi-jax ${words[*]}"
# A signal to this shell must not end it before the tasks have saved.
trap : TERM USR1
EOF
  # shellcheck disable=SC2016
  printf 'srun --kill-on-bad-exit=1 %q -m fi_jax "${words[@]}" &\n' "${opt[python]}"
  echo "step=\$! max_restarts=${opt[max-restarts]}"
  cat <<'EOF'
wait $step
# A signal ends `wait` early.
while kill -0 $step 2>/dev/null; do wait $step; done
wait $step; status=$?
# 75: it saved. 143: SIGTERM came before fi-jax could answer it; its last checkpoint stands.
case $status in 75 | 143) ;; *) exit $status ;; esac
[ "${SLURM_RESTART_COUNT:-0}" -lt "$max_restarts" ] || exit $status
# The number of an array's last task is also that of the whole array, so tasks go by array and index.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
for try in 1 2 3 4 5; do
  # A cancelled job must not come back; one that ran out of time is COMPLETING too, for another reason.
  case $(squeue --noheader --jobs="$job" --format=%T/%r) in COMPLETING/None) break ;; esac
  echo "status $status; requeueing job $job"
  scontrol requeue "$job" && exit 0
  echo "not requeued (try $try of 5)"
  sleep 5
done
exit $status
EOF
}

# submit PATTERN: submits standard input; PATTERN is what a log's name ends in. %A_%a in arrays, %j otherwise: both
# begin with the number that sbatch prints.
submit() {
  local script
  script=$(cat)
  if [ -n "$dry_run" ]; then
    echo "$script"
    return
  fi
  need sbatch "run this on the cluster's login node, or look with --dry-run"
  mkdir -p "${opt[log-dir]}"
  sbatch --parsable --output="${opt[log-dir]}/%x-$1.out" <<<"$script"
}

slurm_action() {
  case $action in logs | delete) require "--$action" "$target" '[0-9]+(_[0-9]+)?' "the number of a job" ;; esac
  case $action in
    list)
      need squeue "run this on the cluster's login node"
      run squeue --me --Format=JobArrayID:14,Name:24,Partition:12,StateCompact:6,TimeUsed:12,RestartCnt:12,Comment:16,ReasonList:24 |
        { if [ -n "$dry_run" ]; then cat; else grep -E "^JOBID|$mark" || true; fi; }
      ;;
    logs)
      local found
      if [ -n "$dry_run" ]; then
        run tail -n 100 "${opt[log-dir]}/*-$target.out"
        return
      fi
      found=$(find "${opt[log-dir]}" -name "*-$target.out" -o -name "*-${target}_*.out" 2>/dev/null | sort | head -n 1)
      [ -n "$found" ] || die "no log of job '$target' in '${opt[log-dir]}'; a job that waits has none yet (--list)"
      show_log "$found"
      ;;
    delete)
      if [ -z "$dry_run" ]; then
        need scancel "run this on the cluster's login node"
        squeue --me --noheader --jobs="$target" --format=%k 2>/dev/null | grep -q "$mark" ||
          die "job '$target' is not in the queue, or was not started by these scripts (--list shows those)"
      fi
      run scancel "$target"
      ;;
    *) return 1 ;;
  esac
}

# start WORD "$@": submits `fi-jax WORD ...`.
start() {
  local word=$1
  shift
  parse "$@"
  slurm_action && return
  [ ${#words[@]} -gt 0 ] || die "nothing to do: give fi-jax's arguments after '--', as in: $0 --nodes 1 -- nano --name mine"
  check_options
  {
    header
    environment
    echo "words=($(quoted "$word" "${words[@]}"))"
    body
  } | submit %j
}
