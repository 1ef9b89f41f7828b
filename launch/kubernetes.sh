#!/usr/bin/env bash
# Train on a Kubernetes cluster as a JobSet (jobset.sigs.k8s.io), with one process per node.
#
#   NAME=mae IMAGE=registry.example/occinv HOSTS=4 CHIPS=4 TPU=tpu-v5-lite-podslice TOPOLOGY=4x4 \
#     VOLUME=shared launch/kubernetes.sh [--dry-run] [sweep] CONFIG WORKDIR [--config.field=value ...]
#
# The word sweep runs `occinv sweep` instead of `occinv train`.
# For GPUs, leave TPU and TOPOLOGY out; CHIPS is then the number of nvidia.com/gpu. IMAGE has occinv
# installed; or it has Python and git, and INSTALL='occinv[tpu] @ git+URL@REF' installs occinv at the
# start. CONFIG is a config of occinv, such as mae, or a file in the image. VOLUME is the name of a
# PersistentVolumeClaim that every node can write to. It is mounted at /shared, and WORKDIR is a
# folder below /shared. If a node is lost, all nodes restart, up to RESTARTS times (default: 100),
# and the run in WORKDIR continues. --dry-run only prints the manifest. To see the logs:
#   kubectl logs --follow --selector jobset.sigs.k8s.io/jobset-name=NAME --all-containers
set -euo pipefail

dry_run=false
if [[ ${1-} == --dry-run ]]; then dry_run=true; shift; fi
subcommand=train
if [[ ${1-} == train || ${1-} == sweep ]]; then subcommand=$1; shift; fi
if (($# < 2)); then
  echo "usage: $0 [--dry-run] [sweep] CONFIG WORKDIR [--config.field=value ...]" >&2
  exit 2
fi
if [[ $2 != /shared/* ]]; then
  echo "$0: WORKDIR is $2, expected a folder below /shared, where VOLUME is mounted" >&2
  exit 2
fi
for setting in NAME IMAGE HOSTS CHIPS VOLUME; do
  if [[ -z ${!setting-} ]]; then
    echo "$0: $setting is not set. The comment at the top of this file explains it." >&2
    exit 2
  fi
done
if ! [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]]; then
  echo "$0: NAME is $NAME, expected lower-case letters, digits and hyphens, first a letter" >&2
  exit 2
fi
for number in HOSTS CHIPS; do
  if ! [[ ${!number} =~ ^[1-9][0-9]*$ ]]; then
    echo "$0: $number is ${!number}, expected a number of 1 or more" >&2
    exit 2
  fi
done
if ! [[ ${RESTARTS:=100} =~ ^[0-9]+$ ]]; then
  echo "$0: RESTARTS is $RESTARTS, expected a number" >&2
  exit 2
fi
for word in IMAGE VOLUME TPU TOPOLOGY; do
  if ! [[ ${!word-} =~ ^[A-Za-z0-9./:@_-]*$ ]]; then
    echo "$0: $word is ${!word}, expected letters, digits and ./:@_-" >&2
    exit 2
  fi
done
if [[ -n ${TPU-} && -z ${TOPOLOGY-} ]]; then
  echo "$0: TPU=$TPU needs TOPOLOGY. Set it, for example TOPOLOGY=4x4." >&2
  exit 2
fi

# Pod 0 of the JobSet is process 0, under this host name. The shell in the container expands
# JOB_COMPLETION_INDEX, the number of its pod.
occinv="exec occinv $subcommand --coordinator $NAME-workers-0-0.$NAME:8476 --num-processes $HOSTS \
--process-id \$JOB_COMPLETION_INDEX $(printf '%q ' --config "$1" --workdir "$2" "${@:3}")"
if [[ -n ${INSTALL-} ]]; then
  occinv="python3 -m pip install --quiet $(printf '%q' "$INSTALL") && $occinv"
fi

chip=nvidia.com/gpu selector=
if [[ -n ${TPU-} ]]; then
  chip=google.com/tpu
  selector="
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $TPU
                cloud.google.com/gke-tpu-topology: $TOPOLOGY"
fi
# In a YAML string in single quotes, only a single quote is special: it is written twice.
manifest="apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
spec:
  failurePolicy:
    maxRestarts: $RESTARTS
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
              terminationGracePeriodSeconds: 300  # occinv saves when it gets SIGTERM
              containers:
                - name: occinv
                  image: $IMAGE
                  command: [bash, -c, '${occinv//\'/\'\'}']
                  ports: [{containerPort: 8476}]
                  resources:
                    limits: {$chip: $CHIPS}
                  volumeMounts: [{name: shared, mountPath: /shared}]
              volumes:
                - name: shared
                  persistentVolumeClaim: {claimName: $VOLUME}"

if $dry_run; then echo "$manifest"; else kubectl apply -f - <<< "$manifest"; fi
