# shellcheck shell=bash
# What every launcher does the same way: options from flags and one small file, dry runs, errors on one line.
#
# A launcher declares `declare -A opt=([nodes]=1 ...)`, calls `parse "$@"`, and finds its options in `opt`, the
# asked action in `action` (run, list, logs, delete), that action's name in `target`, and what stood after `--` in
# `words`. A settings file has lines `nodes = 4`, one option each; flags win over it.
# shellcheck disable=SC2034

action=run
target=
dry_run=
words=()
pairs=()

die() {
  echo "error: $*" >&2
  exit 2
}

# require NAME VALUE PATTERN WHAT: a value that does not match is refused by name.
require() {
  [[ $2 =~ ^($3)$ ]] || die "$1 is ${2@Q}; it must be $4"
}

# Values that stand in a script, a manifest or a path: what is not of this form could mean something else there.
# Without leading zeros, with which bash reads octal.
whole_number='0|[1-9][0-9]{0,8}'
positive='[1-9][0-9]{0,8}'
# No folder but its own, no option, no pattern.
plain_name='[A-Za-z0-9][A-Za-z0-9._-]*'
one_word='[A-Za-z0-9_][A-Za-z0-9_.:,/@%+=-]*'

# Reads --env, NAME=value ..., into the array `pairs`.
read_env() {
  local pair
  read -ra pairs <<<"${opt[env]}"
  for pair in "${pairs[@]}"; do
    [[ $pair =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "env: ${pair@Q} is not NAME=value"
  done
}

# check_mesh DEVICES WHERE: the --mesh.AXIS flags among `words` must fit the devices (an axis of -1 takes what is left).
# Leaves the mesh in `mesh`, as fi-jax plan takes it.
check_mesh() {
  local i flag value rest=data product=1 named=0
  mesh=
  for ((i = 0; i < ${#words[@]}; i++)); do
    flag=${words[i]%%=*}
    [[ $flag =~ ^--mesh\.(data|fsdp|tensor)$ ]] || continue
    if [[ ${words[i]} == *=* ]]; then value=${words[i]#*=}; else value=${words[i + 1]-}; fi
    if [ "$value" = -1 ]; then
      rest=${flag#--mesh.}
      continue
    fi
    require "$flag" "$value" '[1-9][0-9]*' "-1 or a positive whole number"
    product=$((product * value)) named=$((named + 1)) mesh+=",${flag#--mesh.}=$value"
  done
  if [ $(($1 % product)) -ne 0 ] || { [ "$named" -eq 3 ] && [ "$product" -ne "$1" ]; }; then
    die "the mesh multiplies to $product but $2 has $1 devices"
  fi
  [[ $mesh == *",$rest="* ]] || mesh+=",$rest=$(($1 / product))"
  mesh=${mesh#,}
}

# show_plan TOPOLOGY: what fi-jax plan says of this run on it, after a dry run. On stderr: a manifest stays one. With
# FI_JAX_LIBTPU the TPU's compiler is asked, which takes minutes; without it only the command is shown.
show_plan() {
  local i command=(python3 -m fi_jax plan "${words[0]}" --mesh "$mesh" --topology "$1")
  for ((i = 1; i < ${#words[@]}; i++)); do
    [[ ${words[i]} =~ ^--(data|model|loss|train)\. ]] || continue
    command+=("${words[i]}")
    [[ ${words[i]} == *=* || ${words[i + 1]---} == --* ]] || command+=("${words[i + 1]}")
  done
  echo "plan: $(quoted "${command[@]}")" >&2
  [ -z "${FI_JAX_LIBTPU-}" ] || "${command[@]}" >&2
}

# Runs a command, or prints it when this is a dry run.
run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

need() {
  command -v "$1" >/dev/null || die "'$1' is not installed here; $2"
}

# Prints the comment at the top of the launcher, and the options with their defaults.
usage() {
  sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
  echo
  echo "Options (also as 'name = value' lines of --settings FILE):"
  local name
  for name in $(printf '%s\n' "${!opt[@]}" | sort); do
    printf '  --%-20s %s\n' "$name" "${opt[$name]:-(empty)}"
  done
  cat <<'EOF'

Actions instead of starting:
  --list               jobs started from here
  --logs NAME          the end of a job's log (--follow goes on)
  --delete NAME        ends a job and frees what it holds
  --dry-run            prints what would be done, and does nothing
EOF
}

set_option() {
  [ -n "${opt[$1]+set}" ] || die "unknown option '$1'; known: $(printf '%s\n' "${!opt[@]}" | sort | tr '\n' ' ')"
  [[ $2 != *[[:cntrl:]]* ]] || die "--$1 is ${2@Q}; line breaks and control characters have no place in it"
  opt["$1"]=$2
}

read_settings() {
  local line name value
  [ -f "$1" ] || die "no settings file '$1'"
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line%%#*}
    [[ $line =~ [^[:space:]] ]] || continue
    [[ $line =~ ^[[:space:]]*([a-z-]+)[[:space:]]*=[[:space:]]*(.*[^[:space:]])?[[:space:]]*$ ]] ||
      die "settings file '$1': '$line' is not 'name = value'"
    name=${BASH_REMATCH[1]}
    value=${BASH_REMATCH[2]}
    set_option "$name" "$value"
  done <"$1"
}

parse() {
  local flag value i all=("$@")
  # The settings file first, wherever it stands, so that flags win.
  for ((i = 0; i < ${#all[@]}; i++)); do
    case ${all[i]} in
      --) break ;;
      --settings) read_settings "${all[i + 1]-}" ;;
      --settings=*) read_settings "${all[i]#*=}" ;;
    esac
  done
  while [ $# -gt 0 ]; do
    flag=$1
    case $flag in
      --help | -h) usage && exit 0 ;;
      --dry-run) dry_run=1 && shift && continue ;;
      --follow) follow=1 && shift && continue ;;
      --list) action=list && shift && continue ;;
      --) shift && words=("$@") && break ;;
      --?*) ;;
      *) die "'$flag' is not an option; what fi-jax is to do stands after '--'" ;;
    esac
    if [[ $flag == *=* ]]; then
      value=${flag#*=}
      flag=${flag%%=*}
      shift
    else
      [ $# -gt 1 ] || die "$flag needs a value"
      value=$2
      shift 2
    fi
    case $flag in
      --settings) ;;
      --logs) action=logs target=$value ;;
      --delete) action=delete target=$value ;;
      *) set_option "${flag#--}" "$value" ;;
    esac
  done
}

# Shows the end of a log file; goes on with --follow.
show_log() {
  [ -f "$1" ] || die "no log '$1'"
  if [ -n "${follow-}" ]; then run tail -n 100 -F "$1"; else run tail -n 100 "$1"; fi
}

# Quotes words so that a shell reads them back unchanged.
quoted() {
  printf '%q ' "$@"
}
