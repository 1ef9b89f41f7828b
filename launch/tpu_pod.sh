#!/usr/bin/env bash
# Train on a Cloud TPU slice. Create the slice, unless one of this name exists. Install occinv on
# every worker, and run the same command on all workers. By default it is the committed state of this
# checkout. INSTALL installs another one, from a git reference or a package index:
#   INSTALL='occinv[tpu,gcs] @ git+URL@REF'
#
#   NAME=occinv ZONE=us-east5-b TYPE=v6e-32 VERSION=v2-alpha-tpuv6e PROJECT=my-project \
#     launch/tpu_pod.sh [--dry-run] [sweep] CONFIG WORKDIR [--config.field=value ...]
#
# The word sweep runs `occinv sweep` instead of `occinv train`.
# QUEUE=1 waits for a queued slice. SPOT=1 uses a slice that may be preempted. A preempted slice is
# deleted and created again, up to RESTARTS times (default: 100), and the run in WORKDIR continues.
# CONFIG is a config of occinv, such as mae, or a committed file of this checkout. WORKDIR is a
# folder in a bucket (gs://BUCKET/FOLDER) or on a file system that all workers share. After an
# interruption, run the same command again. The slice costs money until you delete it:
#   gcloud compute tpus tpu-vm delete NAME --zone ZONE --project PROJECT
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then dry_run=true; shift; fi
subcommand=train
if [[ ${1-} == train || ${1-} == sweep ]]; then subcommand=$1; shift; fi
if (($# < 2)); then
  echo "usage: $0 [--dry-run] [sweep] CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
if [[ $2 != /* && $2 != gs://* ]]; then
  echo "$0: WORKDIR is $2, expected gs://BUCKET/FOLDER, or an absolute path that all workers share" >&2
  exit 2
fi
for setting in NAME ZONE TYPE VERSION PROJECT; do
  if [[ -z ${!setting-} ]]; then
    echo "$0: $setting is not set. The comment at the top of this file explains it." >&2
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

# Print READY, PREEMPTED, …, or nothing if the slice does not exist.
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
  local unpack=true what=${INSTALL-}
  if [[ -z $what ]]; then
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:occinv.tar.gz" --worker=all "${where[@]}" \
      || return
    unpack="tar -xzf ../occinv.tar.gz" what="-e '.[tpu,gcs]'"
  else
    what=$(printf '%q' "$what")
  fi
  # The Python of TPU VM images is too old for occinv. uv installs a newer one.
  on_all_workers "mkdir -p occinv && cd occinv && $unpack && \
python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 && \
python3 -m uv pip install --quiet --python .venv/bin/python $what"
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${INSTALL-} ]]; then
  if ! git rev-parse --quiet --verify HEAD > /dev/null 2>&1; then
    echo "$0: $PWD is not a git checkout. Set INSTALL, such as 'occinv[tpu,gcs] @ git+URL@REF'." >&2
    exit 2
  fi
  archive=$(mktemp -d)/occinv.tar.gz
  trap 'rm -r "$(dirname "$archive")"' EXIT
  run git archive --format=tar.gz --output "$archive" HEAD
fi
for ((attempt = 0; ; attempt++)); do
  # `set -e` does not apply in an `if`. The slice can be preempted during each of these steps.
  if make_slice && install && on_all_workers "cd occinv && .venv/bin/occinv $subcommand --distributed \
$(printf '%q ' --config "$1" --workdir "$2" "${@:3}")"; then exit 0; else status=$?; fi
  if [[ $(state) != PREEMPTED ]] || ((attempt >= ${RESTARTS:-100})); then exit "$status"; fi
  echo "$NAME was preempted. Creating it again."
  delete_slice
done
