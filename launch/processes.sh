#!/usr/bin/env bash
# Train with N processes on this machine, to see how several hosts behave.
#
#   launch/processes.sh [--dry-run] [sweep] N CONFIG WORKDIR [--config.field=value ...]
#
# The word sweep runs `occinv sweep` instead of `occinv train`.
# On a CPU, each process has one device. For GPUs, use local.sh, where one process uses all GPUs, or
# set CUDA_VISIBLE_DEVICES per process in a wrapper of occinv. SIGTERM and Ctrl-C reach all
# processes. After an interruption, run the same command again, with any N: the run in WORKDIR
# continues.
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then dry_run=true; shift; fi
subcommand=train
if [[ ${1-} == train || ${1-} == sweep ]]; then subcommand=$1; shift; fi
if (($# < 3)); then
  echo "usage: $0 [--dry-run] [sweep] N CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
count=$1
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
  echo "$0: N is $count, expected a number of processes of 1 or more" >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
occinv=$root/.venv/bin/occinv
[[ -x $occinv ]] || occinv=occinv
if ! $dry_run && ! command -v "$occinv" > /dev/null; then
  echo "$0: no occinv in $root/.venv or on the PATH. Install it, as README.md says." >&2
  exit 2
fi

# By default, use a random port, so that two runs on this machine do not collide.
port=${PORT:-$((20000 + RANDOM % 20000))}
processes=()
trap 'kill -TERM "${processes[@]}" 2> /dev/null || true' TERM INT
for ((i = 0; i < count; i++)); do
  command=("$occinv" "$subcommand" --coordinator "localhost:$port" --num-processes "$count" --process-id "$i"
    --config "$2" --workdir "$3" "${@:4}")
  printf '%q ' "${command[@]}"; echo
  $dry_run || { "${command[@]}" & processes+=($!); }
done

status=0
for process in ${processes[@]+"${processes[@]}"}; do
  # A signal ends `wait` early. Wait again for the same process.
  while true; do
    wait "$process" && code=0 || code=$?
    kill -0 "$process" 2> /dev/null || break
  done
  ((code == 0)) || status=$code
done
exit "$status"
