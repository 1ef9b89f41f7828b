#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it (or takes the one of that name), installs the committed
# state of this checkout on every worker, and runs the same command on all of them.
#
#   NAME=occinv ZONE=us-east5-b TYPE=v6e-32 VERSION=v2-alpha-tpuv6e PROJECT=my-project \
#     launch/tpu_pod.sh [--dry-run] CONFIG WORKDIR [--config.field=value ...]
#
# WORKDIR is a folder that every worker sees (NFS, or a mounted bucket). Run it again after an
# interruption: the run in WORKDIR continues. The slice costs money until you delete it:
#   gcloud compute tpus tpu-vm delete NAME --zone ZONE --project PROJECT
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then dry_run=true; shift; fi
if (($# < 2)); then
  echo "usage: $0 [--dry-run] CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
if [[ $2 != /* ]]; then
  echo "$0: WORKDIR is $2, expected the whole path (/...) of a folder that every worker sees" >&2
  exit 2
fi
for setting in NAME ZONE TYPE VERSION PROJECT; do
  if [[ -z ${!setting-} ]]; then
    echo "$0: $setting is not set (see the head of this file)" >&2
    exit 2
  fi
done

run() {
  printf '%q ' "$@"; echo
  $dry_run || "$@"
}
tpu() { run gcloud compute tpus tpu-vm "$1" "$NAME" --zone "$ZONE" --project "$PROJECT" "${@:2}"; }
on_all_workers() { tpu ssh --worker=all --command "$1"; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! tpu describe > /dev/null 2>&1 || $dry_run; then
  tpu create --accelerator-type "$TYPE" --version "$VERSION"
fi

archive=$(mktemp -d)/occinv.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
run git archive --format=tar.gz --output "$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:occinv.tar.gz" --worker=all \
  --zone "$ZONE" --project "$PROJECT"
# The images of TPU VMs carry an older Python than occinv needs; uv brings one.
on_all_workers "mkdir -p occinv && tar -xzf occinv.tar.gz -C occinv && cd occinv && \
python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 && \
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'"
on_all_workers "cd occinv && .venv/bin/occinv train --distributed $(printf '%q ' --config "$1" --workdir "$2" "${@:3}")"
