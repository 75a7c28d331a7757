#!/usr/bin/env bash
# A private one-node SLURM cluster in a folder, for tests: real munged, slurmctld and slurmd, on their own ports.
#
#   slurm_cluster.sh start DIR   prints `export SLURM_CONF=...`; eval it
#   slurm_cluster.sh stop DIR
#
# Needs the packages slurm-wlm and munge. Two partitions: "low" jobs are requeued when a "high" job wants the node.
set -euo pipefail

free_ports() {
  python3 -c '
import socket
both = [socket.socket(), socket.socket()]
for one in both:
    one.bind(("", 0))
print(*(one.getsockname()[1] for one in both))'
}

start() {
  local dir=$1 node user cpus controller daemon
  mkdir -p "$dir" && dir=$(cd "$dir" && pwd)
  node=$(hostname -s)
  user=$(id -un)
  read -r controller daemon <<<"$(free_ports)"
  cpus=5 # more than the machine may have: tests run small things
  mkdir -p "$dir/state" "$dir/spool" "$dir/munge"
  chmod 700 "$dir/munge"
  if [ ! -f "$dir/munge/key" ]; then
    dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
    chmod 400 "$dir/munge/key"
  fi
  munged --force --key-file="$dir/munge/key" --socket="$dir/munge.sock" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" 2>>"$dir/start.log"
  cat >"$dir/slurm.conf" <<EOF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$controller
SlurmdPort=$daemon
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
CredType=cred/munge
SlurmUser=$user
SlurmdUser=$user
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=2,requeue_setup_env_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Seconds between SIGTERM and SIGKILL when a job is cancelled or runs out of time.
KillWait=60
InactiveLimit=0
JobRequeue=1
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=low Nodes=$node Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=$node MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
EOF
  export SLURM_CONF="$dir/slurm.conf"
  slurmctld -i -c >>"$dir/start.log" 2>&1
  slurmd >>"$dir/start.log" 2>&1
  for _ in $(seq 60); do
    if [ "$(sinfo --noheader --format=%T --partition=low 2>/dev/null)" = idle ]; then
      echo "export SLURM_CONF=$dir/slurm.conf"
      return
    fi
    sleep 0.5
  done
  echo "error: the node did not become idle; see $dir/*.log" >&2
  tail -n 20 "$dir"/*.log >&2
  stop "$dir"
  return 1
}

stop() {
  local dir=$1 pid_file pid
  export SLURM_CONF="$dir/slurm.conf"
  scancel --full --signal=KILL --user="$(id -un)" 2>/dev/null || true
  scancel --user="$(id -un)" 2>/dev/null || true
  # What watches over a job does not end before the controller has heard of the job's end.
  for _ in $(seq 20); do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 0.25
  done
  scontrol shutdown 2>/dev/null || true
  for pid_file in "$dir/slurmd.pid" "$dir/slurmctld.pid" "$dir/munge/pid"; do
    # The daemon removes it when it ends, maybe just now.
    pid=$(cat "$pid_file" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 40); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.25
    done
    kill -9 "$pid" 2>/dev/null || true
  done
}

case "${1-} ${2-}" in
  "start "?*) start "$2" ;;
  "stop "?*) stop "$2" ;;
  *)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
