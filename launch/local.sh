#!/usr/bin/env bash
# Train on all accelerators of this machine, or on its CPU if it has no accelerator.
#
#   launch/local.sh [--dry-run] [sweep] CONFIG WORKDIR [--config.field=value ...]
#
# The word sweep runs `occinv sweep` instead of `occinv train`.
# CONFIG is a config of occinv, such as mae:smoke, or a file. After an interruption, run the same
# command again: the run in WORKDIR continues.
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then dry_run=true; shift; fi
subcommand=train
if [[ ${1-} == train || ${1-} == sweep ]]; then subcommand=$1; shift; fi
if (($# < 2)); then
  echo "usage: $0 [--dry-run] [sweep] CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi

# Use the environment that `make` creates in the checkout, or else the installed occinv.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
occinv=$root/.venv/bin/occinv
[[ -x $occinv ]] || occinv=occinv
if ! $dry_run && ! command -v "$occinv" > /dev/null; then
  echo "$0: no occinv in $root/.venv or on the PATH. Install it, as README.md says." >&2
  exit 2
fi

command=("$occinv" "$subcommand" --config "$1" --workdir "$2" "${@:3}")
printf '%q ' "${command[@]}"; echo
$dry_run || exec "${command[@]}"
