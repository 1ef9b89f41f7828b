#!/usr/bin/env bash
# Trains on this machine, on all its accelerators (or on its CPU where it has none).
#
#   launch/local.sh [--dry-run] CONFIG WORKDIR [--config.field=value ...]
#
# Run it again after an interruption: the run in WORKDIR continues.
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then dry_run=true; shift; fi
if (($# < 2)); then
  echo "usage: $0 [--dry-run] CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi

# The checkout's own environment where `make` has made one, else the one that is active.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
occinv=$root/.venv/bin/occinv
[[ -x $occinv ]] || occinv=occinv

command=("$occinv" train --config "$1" --workdir "$2" "${@:3}")
printf '%q ' "${command[@]}"; echo
$dry_run || exec "${command[@]}"
