#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates it (or takes the one of that name), installs the committed
# state of this checkout on every worker, and runs the same command on all of them.
#
#   NAME=occinv ZONE=us-east5-b TYPE=v6e-32 VERSION=v2-alpha-tpuv6e PROJECT=my-project \
#     launch/tpu_pod.sh [--dry-run] CONFIG WORKDIR [--config.field=value ...]
#
# QUEUE=1 waits in the queue for a slice, SPOT=1 takes one that may be preempted. A preempted slice
# is deleted and made again, RESTARTS times (100 unless told), and the run in WORKDIR continues;
# WORKDIR is a folder that every worker sees (NFS, or a mounted bucket). Run it again after an
# interruption of your own. The slice costs money until you delete it:
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
where=(--zone "$ZONE" --project "$PROJECT")
spot=()
if [[ -n ${SPOT-} ]]; then spot=(--spot); fi
tpu() { run gcloud compute tpus tpu-vm "$1" "$NAME" "${where[@]}" "${@:2}"; }
queue() { run gcloud compute tpus queued-resources "$1" "$NAME" "${where[@]}" "${@:2}"; }
on_all_workers() { tpu ssh --worker=all --command "$1"; }

# READY, PREEMPTED, …, or nothing where there is no such slice.
state() {
  $dry_run || gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format 'value(state)' \
    2> /dev/null || true
}

make_slice() {
  [[ $(state) != READY ]] || return 0
  if [[ -z ${QUEUE-} ]]; then
    tpu create --accelerator-type "$TYPE" --version "$VERSION" ${spot[@]+"${spot[@]}"}
    return
  fi
  queue create --node-id "$NAME" --accelerator-type "$TYPE" --runtime-version "$VERSION" \
    ${spot[@]+"${spot[@]}"} || return
  until $dry_run || [[ $(state) == READY ]]; do sleep 60; done
}

delete_slice() {
  tpu delete --quiet || true
  [[ -z ${QUEUE-} ]] || queue delete --quiet --force
}

install() {
  run gcloud compute tpus tpu-vm scp "$archive" "$NAME:occinv.tar.gz" --worker=all "${where[@]}" \
    || return
  # The images of TPU VMs carry an older Python than occinv needs; uv brings one.
  on_all_workers "mkdir -p occinv && tar -xzf occinv.tar.gz -C occinv && cd occinv && \
python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 && \
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
archive=$(mktemp -d)/occinv.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
run git archive --format=tar.gz --output "$archive" HEAD
for ((attempt = 0; ; attempt++)); do
  # Not `set -e`: a slice can be preempted at any of these.
  if make_slice && install && on_all_workers "cd occinv && .venv/bin/occinv train --distributed \
$(printf '%q ' --config "$1" --workdir "$2" "${@:3}")"; then exit 0; else status=$?; fi
  if [[ $(state) != PREEMPTED ]] || ((attempt >= ${RESTARTS:-100})); then exit "$status"; fi
  echo "$NAME was preempted: making it again"
  delete_slice
done
