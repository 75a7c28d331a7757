#!/usr/bin/env bash
# Trains on Kubernetes (GKE) as one JobSet, on a GPU or a TPU node pool. The cluster needs the JobSet controller.
#
#   launch/gke/train.sh --job faces --image IMAGE --nodes 4 --gpus-per-node 8 --volume runs -- 7b --runs /data/runs --data.batch-size 128
#   launch/gke/train.sh --job faces --image IMAGE --tpu-type tpu-v5-lite-podslice --tpu-topology 4x4 --nodes 4 \
#       --chips-per-node 4 --volume runs -- 7b --mesh.fsdp 16 --train.accumulate 1 --runs /data/runs
#
# One pod a node. A pod that stops (preemption, a dead node, exit 75) restarts the JobSet, --max-restarts times at most,
# and training resumes from its last checkpoint; a mistake in the arguments (exit 2) ends it at once. --volume names a
# PersistentVolumeClaim that all pods can write; it appears at --mount. --slices above 1 is TPU multislice. --dry-run
# prints the manifest, and the plan of the run on this topology.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/lib.sh
source "$here/../lib.sh"

declare -A opt=(
  [job]="fi-jax"
  [image]=""
  [namespace]="default"
  [nodes]=1
  [gpu-type]="nvidia-h100-80gb"
  [gpus-per-node]=0
  [tpu-type]=""
  [tpu-topology]=""
  [chips-per-node]=4
  [slices]=1
  [cpu]=""
  [memory]=""
  [spot]=0
  [volume]=""
  [mount]="/data"
  [max-restarts]=100
  [notice]=180
  [python]="python"
  [env]=""
)
parse "$@"
label=app.kubernetes.io/managed-by=fi-jax-launch
kube=(kubectl --namespace "${opt[namespace]}")

k8s_name='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'
k8s_says="a Kubernetes name: small letters, digits and '-', 40 at most"
require --namespace "${opt[namespace]}" "$k8s_name" "$k8s_says"
case $action in logs | delete) require "--$action" "$target" "$plain_name" "the name of a job" ;; esac

case $action in
  list)
    run "${kube[@]}" get jobsets --selector "$label"
    exit
    ;;
  logs)
    run "${kube[@]}" logs --selector "jobset.sigs.k8s.io/jobset-name=$target" --prefix --tail=100 \
      --max-log-requests=100 ${follow:+--follow}
    exit
    ;;
  delete)
    # By label and name, so that nothing that was started otherwise can be meant.
    run "${kube[@]}" delete jobset --selector "$label,fi-jax/job=$target"
    exit
    ;;
esac

[ ${#words[@]} -gt 0 ] || die "nothing to do: give fi-jax train's arguments after '--', as in: $0 --image IMAGE -- nano"
[ -n "${opt[image]}" ] || die "give the container image: --image IMAGE"
require --job "${opt[job]}" "$k8s_name" "$k8s_says"
for name in nodes slices chips-per-node; do
  require "--$name" "${opt[$name]}" "$positive" "a positive whole number"
done
for name in gpus-per-node max-restarts notice; do
  require "--$name" "${opt[$name]}" "$whole_number" "a whole number"
done
read_env
[ -z "${opt[tpu-type]}" ] || [ -n "${opt[tpu-topology]}" ] || die "--tpu-type needs --tpu-topology, as in 4x4"
[ -z "${opt[tpu-type]}" ] || [ "${opt[gpus-per-node]}" = 0 ] || die "choose GPUs or TPUs, not both"
[ -n "${opt[tpu-type]}" ] || [ "${opt[slices]}" = 1 ] || die "--slices is for TPUs; use --nodes for GPUs"
if [ -n "${opt[tpu-type]}" ]; then
  require --tpu-topology "${opt[tpu-topology]}" '[1-9][0-9]*(x[1-9][0-9]*)+' "sizes, as in 4x4 or 2x2x4"
  chips=$((${opt[tpu-topology]//x/*}))
  [ "$chips" -eq $((opt[nodes] * opt[chips-per-node])) ] ||
    die "topology ${opt[tpu-topology]} has $chips chips, but --nodes ${opt[nodes]} of --chips-per-node ${opt[chips-per-node]} are $((opt[nodes] * opt[chips-per-node]))"
  check_mesh $((chips * opt[slices])) "${opt[slices]} x ${opt[tpu-topology]}"
  [[ ,$mesh, =~ ,data=([0-9]+), ]] && data=${BASH_REMATCH[1]} || data=1
  [ $((data % opt[slices])) -eq 0 ] ||
    die "mesh.data is $data; with --slices ${opt[slices]} it must be a multiple of that: no other axis crosses slices"
elif [ "${opt[gpus-per-node]}" != 0 ]; then
  check_mesh $((opt[nodes] * opt[gpus-per-node])) "--nodes ${opt[nodes]} of --gpus-per-node ${opt[gpus-per-node]}"
fi
for word in "${words[@]}"; do
  word=${word//[$'\n\t']/}
  [[ $word != *[[:cntrl:]]* ]] || die "the argument ${word@Q} has control characters"
done

# A JSON string, which is a YAML string.
text() {
  local value=${1//\\/\\\\}
  value=${value//\"/\\\"}
  value=${value//$'\t'/\\t}
  printf '"%s"' "${value//$'\n'/\\n}"
}

variable() {
  printf '            - {name: %s, value: %s}\n' "$(text "$1")" "$(text "$2")"
}

env_block() {
  local pair
  variable PYTHONUNBUFFERED 1
  if [ -n "${opt[tpu-type]}" ]; then
    # Kubernetes' TPU webhook sets the workers' names; JAX reads them.
    variable FI_JAX_CLUSTER tpu
  elif [ "${opt[nodes]}" -gt 1 ]; then
    # JOB_COMPLETION_INDEX, which Kubernetes sets, is the process's number.
    variable FI_JAX_COORDINATOR "${opt[job]}-workers-0-0.${opt[job]}:8476"
    variable FI_JAX_NUM_PROCESSES "${opt[nodes]}"
  fi
  [ -z "${opt[volume]}" ] || variable FI_JAX_CACHE "${opt[mount]}/cache"
  for pair in "${pairs[@]}"; do variable "${pair%%=*}" "${pair#*=}"; done
}

node_selector() {
  if [ -n "${opt[tpu-type]}" ]; then
    printf '            cloud.google.com/gke-tpu-accelerator: %s\n' "$(text "${opt[tpu-type]}")"
    printf '            cloud.google.com/gke-tpu-topology: %s\n' "$(text "${opt[tpu-topology]}")"
  elif [ "${opt[gpus-per-node]}" != 0 ]; then
    printf '            cloud.google.com/gke-accelerator: %s\n' "$(text "${opt[gpu-type]}")"
  else
    echo '            kubernetes.io/os: "linux"'
  fi
  [ "${opt[spot]}" = 0 ] || echo '            cloud.google.com/gke-spot: "true"'
}

# Accelerators must be asked for as limits; requests follow from them.
limits() {
  if [ -n "${opt[tpu-type]}" ]; then
    echo "              google.com/tpu: ${opt[chips-per-node]}"
  elif [ "${opt[gpus-per-node]}" != 0 ]; then
    echo "              nvidia.com/gpu: ${opt[gpus-per-node]}"
  fi
  [ -z "${opt[cpu]}" ] || echo "              cpu: $(text "${opt[cpu]}")"
  [ -z "${opt[memory]}" ] || echo "              memory: $(text "${opt[memory]}")"
}

arguments() {
  local word
  for word in -m fi_jax train "${words[@]}"; do
    echo "            - $(text "$word")"
  done
}

manifest() {
  local limit
  limit=$(limits)
  cat <<EOF
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ${opt[job]}
  namespace: ${opt[namespace]}
  labels:
    app.kubernetes.io/managed-by: fi-jax-launch
    fi-jax/job: ${opt[job]}
EOF
  if [ -n "${opt[tpu-type]}" ]; then
    # A slice is one node pool: its job must not be spread over two.
    cat <<'EOF'
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
EOF
  fi
  cat <<EOF
spec:
  network:
    enableDNSHostnames: true
  failurePolicy:
    maxRestarts: ${opt[max-restarts]}
    rules:
    - action: FailJobSet
      onJobFailureReasons: ["PodFailurePolicy"]
  replicatedJobs:
  - name: workers
    replicas: ${opt[slices]}
    template:
      spec:
        parallelism: ${opt[nodes]}
        completions: ${opt[nodes]}
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          # Exit status 2 is the user's mistake: starting again would not help.
          - action: FailJob
            onExitCodes:
              containerName: fi-jax
              operator: In
              values: [2]
        template:
          metadata:
            labels:
              fi-jax/job: ${opt[job]}
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: ${opt[notice]}
            nodeSelector:
$(node_selector | sed 's/^/  /')
            containers:
            - name: fi-jax
              image: $(text "${opt[image]}")
              command: [$(text "${opt[python]}")]
              args:
$(arguments | sed 's/^/  /')
              env:
$(env_block | sed 's/^/  /')
              ports:
              - containerPort: 8476
EOF
  if [ -n "$limit" ]; then
    echo "              resources:"
    echo "                limits:"
    # shellcheck disable=SC2001
    sed 's/^/    /' <<<"$limit"
  fi
  if [ "${opt[gpus-per-node]}" != 0 ] || [ -n "${opt[volume]}" ]; then
    echo "              volumeMounts:"
    [ -z "${opt[volume]}" ] || echo "              - {name: runs, mountPath: $(text "${opt[mount]}")}"
    # NCCL needs more shared memory than a container's 64 MB.
    [ "${opt[gpus-per-node]}" = 0 ] || echo "              - {name: shm, mountPath: /dev/shm}"
    echo "            volumes:"
    [ -z "${opt[volume]}" ] || echo "            - {name: runs, persistentVolumeClaim: {claimName: $(text "${opt[volume]}")}}"
    [ "${opt[gpus-per-node]}" = 0 ] || echo "            - {name: shm, emptyDir: {medium: Memory}}"
  fi
  if [ "${opt[gpus-per-node]}" != 0 ]; then
    echo "            tolerations:"
    echo "            - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}"
  fi
}

if [ -n "$dry_run" ]; then
  manifest
  slices=
  [ "${opt[slices]}" = 1 ] || slices="*${opt[slices]}"
  case ${opt[tpu-type]},${opt[gpu-type]} in
    tpu-v5-lite-*) show_plan "v5e:${opt[tpu-topology]}$slices" ;;
    tpu-v*) topology=${opt[tpu-type]#tpu-} && show_plan "${topology%%-*}:${opt[tpu-topology]}$slices" ;;
    ,nvidia-h100-* | ,nvidia-h200-* | ,nvidia-a100-*)
      [ "${opt[gpus-per-node]}" = 0 ] || { gpu=${opt[gpu-type]#nvidia-} && show_plan "${gpu%%-*}:${opt[nodes]}x${opt[gpus-per-node]}"; } ;;
  esac
else
  need kubectl "install it and point it to the cluster, or look with --dry-run"
  manifest | "${kube[@]}" apply --filename -
fi
