#!/usr/bin/env bash
# Runs one fi-jax command as several processes of this machine that work as one.
#
#   launch/local.sh --processes 2 -- train tiny --name two
#   launch/local.sh --processes 2 --background 1 --job two --restarts 5 -- train tiny --name two
#   launch/local.sh --logs two --follow
#
# Every output line begins with its process's number. When one process fails, the others are ended and all start again,
# --restarts times at most; training resumes from its last checkpoint. --devices is how many (virtual) CPU devices
# each process has; leave it empty for GPUs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/lib.sh
source "$here/lib.sh"

declare -A opt=(
  [processes]=1
  [devices]=""
  [restarts]=0
  [heartbeat]=60
  [background]=0
  [job]="local"
  [state-dir]="runs/local"
  [python]="python"
)
parse "$@"
case $action in logs | delete) opt[job]=$target ;; esac
require "--${action/run/job}" "${opt[job]}" "$plain_name" "letters, digits, '.', '_' and '-' (--list shows the jobs)"
require --state-dir "${opt[state-dir]}" '.+' "a folder"

# The folder of one job: `command`, `pid` (the supervisor; its process group is the job) and `log`.
job_dir=${opt[state-dir]}/${opt[job]}

# The number may belong to another program by now; the supervisor may be gone, killed, while its processes train; and
# what has ended may stay as a zombie, where no init collects it.
alive() {
  [ -f "$1/pid" ] && pgrep -r D,R,S,T -g "$(cat "$1/pid")" -f 'local\.sh| -m fi_jax ' >/dev/null
}

case $action in
  list)
    shopt -s nullglob
    for file in "${opt[state-dir]}"/*/command; do
      dir=${file%/command}
      if alive "$dir"; then state=running; else state="ended ($(cat "$dir/status" 2>/dev/null || echo killed))"; fi
      printf '%-24s %-14s %s\n' "$(basename "$dir")" "$state" "$(cat "$file")"
    done
    exit
    ;;
  logs)
    [ -f "$job_dir/command" ] || die "no job '$target' in '${opt[state-dir]}' (--list)"
    show_log "$job_dir/log"
    exit
    ;;
  delete)
    [ -f "$job_dir/command" ] || die "no job '$target' in '${opt[state-dir]}' (--list)"
    if alive "$job_dir"; then
      # SIGTERM first: training saves and stops; then what is left.
      run kill -TERM -- "-$(cat "$job_dir/pid")"
      for _ in $(seq 60); do
        if [ -n "$dry_run" ] || ! alive "$job_dir"; then break; fi
        sleep 0.5
      done
      [ -n "$dry_run" ] || kill -KILL -- "-$(cat "$job_dir/pid")" 2>/dev/null || true
    fi
    run rm -r "$job_dir"
    exit
    ;;
esac

[ ${#words[@]} -gt 0 ] || die "nothing to do: give fi-jax's arguments after '--', as in: $0 --processes 2 -- train tiny"
require --processes "${opt[processes]}" '[1-9][0-9]?' "1 to 99"
for name in restarts heartbeat background; do require "--$name" "${opt[$name]}" "$whole_number" "a whole number"; done
[ -z "${opt[devices]}" ] || require --devices "${opt[devices]}" '[1-9][0-9]{0,3}' "1 to 9999"
[ -n "$dry_run" ] || need "${opt[python]}" "name one with --python"

if [ "${opt[background]}" != 0 ] && [ -z "${FI_JAX_LOCAL_CHILD-}" ]; then
  if [ -n "$dry_run" ]; then
    run setsid "$0" "$@"
    exit
  fi
  alive "$job_dir" && die "job '${opt[job]}' is running (--delete ends it, --job names another)"
  mkdir -p "$job_dir"
  rm -f "$job_dir/status"
  printf '%s\n' "${words[*]}" >"$job_dir/command"
  # A session of its own: the terminal may go, and one signal reaches the whole job.
  FI_JAX_LOCAL_CHILD=1 setsid "$0" "$@" >"$job_dir/log" 2>&1 </dev/null &
  echo $! >"$job_dir/pid"
  echo "started '${opt[job]}'; look with $0 --logs ${opt[job]}"
  exit
fi

free_port() {
  "${opt[python]}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

variables() {
  if [ "${opt[processes]}" != 1 ]; then
    echo "FI_JAX_COORDINATOR=127.0.0.1:$1" "FI_JAX_NUM_PROCESSES=${opt[processes]}" "FI_JAX_PROCESS_ID=$2"
    echo "FI_JAX_HEARTBEAT_SECONDS=${opt[heartbeat]}"
  fi
  # XLA's CPU runtime needs more threads than devices, or collectives that run side by side starve each other.
  [ -z "${opt[devices]}" ] || echo "JAX_NUM_CPU_DEVICES=${opt[devices]} JAX_PLATFORMS=cpu NPROC=$((8 * opt[devices]))"
}

if [ -n "$dry_run" ]; then
  for ((i = 0; i < opt[processes]; i++)); do
    # shellcheck disable=SC2046
    run env $(variables PORT "$i") "${opt[python]}" -m fi_jax "${words[@]}"
  done
  exit
fi

pids=()
stopping=
# Called by the trap below.
# shellcheck disable=SC2317
forward() {
  stopping=1
  signal TERM
}
trap forward TERM INT HUP

# To the processes that still run.
signal() {
  [ ${#pids[@]} -eq 0 ] || kill "-$1" "${pids[@]}" 2>/dev/null || true
}

drop() {
  local pid kept=()
  for pid in "${pids[@]}"; do
    [ "$pid" = "$1" ] || kept+=("$pid")
  done
  pids=("${kept[@]}")
}

# Ends what still runs after a failure: nobody can go on without the one that failed.
end_others() {
  signal TERM
  for _ in $(seq 50); do
    kill -0 "${pids[@]}" 2>/dev/null || return 0
    sleep 0.1
  done
  signal KILL
}

# Runs all processes once; the status is the first one that is not 0.
once() {
  local port i pid worst=0 status
  port=$(free_port)
  pids=()
  for ((i = 0; i < opt[processes]; i++)); do
    [ -z "$stopping" ] || break
    # shellcheck disable=SC2046
    env $(variables "$port" "$i") PYTHONUNBUFFERED=1 "${opt[python]}" -m fi_jax "${words[@]}" \
      > >(trap '' TERM INT HUP && exec sed -u "s/^/[$i] /") 2>&1 &
    pids+=($!)
  done
  # A signal that came meanwhile has reached those alone that were known then, or nobody.
  [ -z "$stopping" ] || signal TERM
  [ ${#pids[@]} -gt 0 ] || worst=143
  while [ ${#pids[@]} -gt 0 ]; do
    status=0 pid=
    wait -n -p pid "${pids[@]}" || status=$?
    # No process ended: a signal woke us, which `wait` says by leaving the variable unset.
    [ -n "${pid-}" ] || continue
    drop "$pid"
    if [ "$status" -ne 0 ] && [ "$worst" -eq 0 ]; then
      worst=$status
      # One that stopped in order (75) has agreed on it with the others; and after a signal to us the others save.
      if [ "$status" -ne 75 ] && [ -z "$stopping" ]; then end_others; fi
    fi
  done
  return "$worst"
}

for ((try = 0; ; try++)); do
  status=0
  once || status=$?
  # Not after success, the user's mistake, or a signal to us.
  case $status in 0 | 2) break ;; esac
  if [ -n "$stopping" ] || [ "$try" -ge "${opt[restarts]}" ]; then break; fi
  echo "status $status; start $((try + 1)) of ${opt[restarts]}" >&2
done
# A process that had not begun to listen for SIGTERM (143), or was killed meanwhile (137), lost nothing: the last
# checkpoint stands.
if [ -n "$stopping" ]; then case $status in 137 | 143) status=75 ;; esac; fi
if [ -n "${FI_JAX_LOCAL_CHILD-}" ]; then echo "$status" >"$job_dir/status" || true; fi
exit "$status"
