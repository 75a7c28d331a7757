#!/usr/bin/env bash
# Trains on a Cloud TPU VM slice: creates it, copies this folder to every worker, installs, and runs on all workers.
#
#   launch/tpu_vm/train.sh --job faces --zone us-west4-a --type v5litepod-16 -- 7b --mesh.fsdp 16 --train.accumulate 1 --runs gs://bucket/runs
#   launch/tpu_vm/train.sh --zone us-west4-a --logs faces --follow
#   launch/tpu_vm/train.sh --zone us-west4-a --delete faces
#
# Run it again with the same --job to start again on a slice that exists (--create 0) after its maintenance or your
# change of code. --dry-run also shows the plan of the run on this topology. On the workers, fi-jax is started again after exit 75 and after a crash, --max-restarts times.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/lib.sh
source "$here/../lib.sh"

declare -A opt=(
  [job]="fi-jax"
  [zone]=""
  [project]=""
  [type]="v5litepod-16"
  [version]="v2-alpha-tpuv5-lite"
  [spot]=0
  [create]=1
  [install]="pip install --quiet --upgrade 'jax[tpu]' && pip install --quiet ."
  [python]="python3"
  [env]=""
  [max-restarts]=100
)
parse "$@"
[ -n "${opt[zone]}" ] || die "give the zone: --zone us-west4-a"
case $action in logs | delete) require "--$action" "$target" "$plain_name" "the name of a job" ;; esac
tpu=(gcloud compute tpus tpu-vm)
where=(--zone "${opt[zone]}")
[ -z "${opt[project]}" ] || where+=(--project "${opt[project]}")
[ -n "$dry_run" ] || need gcloud "install Google Cloud's command line and log in, or look with --dry-run"

on_all() {
  run "${tpu[@]}" ssh "$1" "${where[@]}" --worker=all --command "$2"
}

case $action in
  list)
    run "${tpu[@]}" list "${where[@]}" --filter "labels.managed-by=fi-jax-launch"
    exit
    ;;
  logs)
    if [ -n "${follow-}" ]; then tail="tail -n 100 -F"; else tail="tail -n 100"; fi
    run "${tpu[@]}" ssh "$target" "${where[@]}" --worker=0 --command "$tail fi_jax/launch.log"
    exit
    ;;
  delete)
    run "${tpu[@]}" delete "$target" "${where[@]}" --quiet
    exit
    ;;
esac

[ ${#words[@]} -gt 0 ] || die "nothing to do: give fi-jax train's arguments after '--', as in: $0 --zone ZONE -- nano"
require --job "${opt[job]}" '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' "small letters, digits and '-'"
require --max-restarts "${opt[max-restarts]}" "$whole_number" "a whole number"
require --type "${opt[type]}" 'v[0-9]+[a-z]*-[1-9][0-9]*' "a TPU type, as in v5litepod-16"
read_env
# The number in a type counts cores; of v4 and v5p, JAX sees one device a chip of two cores.
devices=${opt[type]##*-}
case ${opt[type]} in v4-* | v5p-*) devices=$((devices / 2)) ;; esac
check_mesh "$devices" "${opt[type]}"
# As libtpu writes the topology of so many chips.
flat=([1]=1x1 [4]=2x2 [8]=2x4 [16]=4x4 [32]=4x8 [64]=8x8 [128]=8x16 [256]=16x16)
deep=([4]=2x2x1 [8]=2x2x2 [16]=2x2x4 [32]=2x4x4 [64]=4x4x4 [128]=4x4x8 [256]=4x8x8)
case ${opt[type]} in
  v5litepod-*) topology=v5e:${flat[devices]-} ;;
  v6e-*) topology=v6e:${flat[devices]-} ;;
  *) topology=${opt[type]%%-*}:${deep[devices]-} ;;
esac

assignments="FI_JAX_CLUSTER=tpu PYTHONUNBUFFERED=1"
for pair in "${pairs[@]}"; do assignments+=" ${pair%%=*}=$(printf '%q' "${pair#*=}")"; done

if [ "${opt[create]}" != 0 ]; then
  spot=()
  [ "${opt[spot]}" = 0 ] || spot=(--spot)
  run "${tpu[@]}" create "${opt[job]}" "${where[@]}" --accelerator-type "${opt[type]}" --version "${opt[version]}" \
    --labels "managed-by=fi-jax-launch" "${spot[@]}"
fi

root=$(cd "$here/../.." && pwd)
on_all "${opt[job]}" "mkdir -p fi_jax"
run "${tpu[@]}" scp --recurse "$root/"{fi_jax,pyproject.toml,README.md,LICENSE,WEIGHTS_NOTICE.md} "${opt[job]}:fi_jax/" "${where[@]}" --worker=all
on_all "${opt[job]}" "cd fi_jax && ${opt[install]}"

# Runs on: it outlives this connection, and one worker that stops is started again with the others. 0 is done, 2 is
# the user's mistake, everything else is worth another start from the last checkpoint.
loop="for try in \$(seq 0 ${opt[max-restarts]}); do
  env $assignments $(printf '%q' "${opt[python]}") -m fi_jax train $(quoted "${words[@]}")
  status=\$?; echo \"start \$try ended with status \$status\"
  case \$status in 0|2) exit \$status;; esac
  sleep 10
done"
on_all "${opt[job]}" "cd fi_jax && nohup setsid bash -c $(printf '%q' "$loop") >>launch.log 2>&1 </dev/null &"
[ -z "$dry_run" ] || [ "${topology#*:}" = "" ] || show_plan "$topology"
