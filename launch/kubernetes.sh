#!/usr/bin/env bash
# Trains on the nodes of a Kubernetes cluster as a JobSet (jobset.sigs.k8s.io), one process a node.
#
#   NAME=mae IMAGE=registry.example/occinv HOSTS=4 CHIPS=4 TPU=tpu-v5-lite-podslice TOPOLOGY=4x4 \
#     VOLUME=shared launch/kubernetes.sh [--dry-run] CONFIG WORKDIR [--config.field=value ...]
#
# For GPUs leave TPU and TOPOLOGY out: CHIPS are then those of nvidia.com/gpu. IMAGE has occinv
# installed and this checkout as its working directory. VOLUME is a claim that every node can write
# to, mounted at /shared, where WORKDIR lies. A lost node restarts all (RESTARTS times, 100 unless
# told), and the run in WORKDIR continues. --dry-run prints the manifest.
#   kubectl logs --follow --selector jobset.sigs.k8s.io/jobset-name=NAME --all-containers
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then dry_run=true; shift; fi
if (($# < 2)); then
  echo "usage: $0 [--dry-run] CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
if [[ $2 != /shared/* ]]; then
  echo "$0: WORKDIR is $2, expected a folder below /shared, which is VOLUME" >&2
  exit 2
fi
for setting in NAME IMAGE HOSTS CHIPS VOLUME; do
  if [[ -z ${!setting-} ]]; then
    echo "$0: $setting is not set (see the head of this file)" >&2
    exit 2
  fi
done
if [[ -n ${TPU-} && -z ${TOPOLOGY-} ]]; then
  echo "$0: TPU=$TPU without TOPOLOGY, such as 4x4" >&2
  exit 2
fi

# Pod 0 of the set is process 0; JobSet gives it this name. Inside the container the shell puts in
# which pod it is.
occinv="occinv train --coordinator $NAME-workers-0-0.$NAME:8476 --num-processes $HOSTS \
--process-id \$JOB_COMPLETION_INDEX $(printf '%q ' --config "$1" --workdir "$2" "${@:3}")"

chip=nvidia.com/gpu selector=
if [[ -n ${TPU-} ]]; then
  chip=google.com/tpu
  selector="
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $TPU
                cloud.google.com/gke-tpu-topology: $TOPOLOGY"
fi
# YAML takes a string in single quotes as it is, but for single quotes, which it wants twice.
manifest="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-100}
  replicatedJobs:
    - name: workers
      replicas: 1
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          template:
            spec:$selector
              restartPolicy: Never
              terminationGracePeriodSeconds: 300  # SIGTERM comes first, on which occinv saves
              containers:
                - name: occinv
                  image: $IMAGE
                  command: [bash, -c, 'exec ${occinv//\'/\'\'}']
                  ports: [{containerPort: 8476}]
                  resources:
                    limits: {$chip: $CHIPS}
                  volumeMounts: [{name: shared, mountPath: /shared}]
              volumes:
                - name: shared
                  persistentVolumeClaim: {claimName: $VOLUME}"

if $dry_run; then echo "$manifest"; else kubectl apply -f - <<< "$manifest"; fi
