#!/usr/bin/env bash
# Trains with N processes on this machine: how several hosts behave, without them.
#
#   launch/processes.sh [--dry-run] N CONFIG WORKDIR [--config.field=value ...]
#
# Each has the devices that JAX gives it: on a CPU one of its own; for GPUs set CUDA_VISIBLE_DEVICES
# in a wrapper of yours, or use local.sh, where one process drives all. SIGTERM and Ctrl-C go to
# all. Run it again after an interruption, with any N: the run in WORKDIR continues.
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then dry_run=true; shift; fi
if (($# < 3)); then
  echo "usage: $0 [--dry-run] N CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
count=$1
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
  echo "$0: N is $count, expected a number of processes, 1 or more" >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
occinv=$root/.venv/bin/occinv
[[ -x $occinv ]] || occinv=occinv

# A port that nobody else has just taken, unless told.
port=${PORT:-$((20000 + RANDOM % 20000))}
processes=()
trap 'kill -TERM "${processes[@]}" 2> /dev/null || true' TERM INT
for ((i = 0; i < count; i++)); do
  command=("$occinv" train --coordinator "localhost:$port" --num-processes "$count" --process-id "$i"
    --config "$2" --workdir "$3" "${@:4}")
  printf '%q ' "${command[@]}"; echo
  $dry_run || { "${command[@]}" & processes+=($!); }
done

status=0
for process in ${processes[@]+"${processes[@]}"}; do
  # A signal ends `wait` early: wait again for the same process.
  while true; do
    wait "$process" && code=0 || code=$?
    kill -0 "$process" 2> /dev/null || break
  done
  ((code == 0)) || status=$code
done
exit "$status"
