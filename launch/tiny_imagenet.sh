#!/usr/bin/env bash
# Every masked objective on a folder of 64² images, then fine-tuning on 10 % and on all labels.
#
#     launch/tiny_imagenet.sh [--dry-run] FOLDER RUNS [--config.FIELD=VALUE ...]
#
# FOLDER holds train/ and val/ with a sub-folder for each class. Overrides go to every run; PRETRAIN
# and FINETUNE (a length as --config.train.duration.FIELD takes it) set how long. Finished runs are
# skipped and interrupted ones go on. Prints a table of top-1 accuracies at the end.
set -euo pipefail

run=()
if [ "${1:-}" = --dry-run ]; then run=(echo); shift; fi
if [ $# -lt 2 ]; then sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
folder=$1 runs=$2
shift 2
configs=$(dirname "$0")/../configs
pretrain=(${PRETRAIN:+--config.train.duration.epochs=None "--config.train.duration.$PRETRAIN"})
finetune=(${FINETUNE:+--config.train.duration.epochs=None "--config.train.duration.$FINETUNE"})

train() { # CONFIG WORKDIR OVERRIDES...
  local config=$1 workdir=$2
  shift 2
  ${run[@]+"${run[@]}"} occinv train --config "$configs/$config.py:tiny_imagenet" \
    --workdir "$workdir" "--config.data.source=folder:$folder" "$@"
}

label() { # NAME CONFIG OVERRIDES...: fine-tune on both amounts of labels
  local name=$1 config=$2
  shift 2
  train "$config" "$runs/$name/10-percent" --config.data.fraction=0.1 \
    ${finetune[@]+"${finetune[@]}"} "$@"
  train "$config" "$runs/$name/all-labels" ${finetune[@]+"${finetune[@]}"} "$@"
}

label random supervised "$@"
while read -r name config override; do
  train "$config" "$runs/$name/pretrain" ${pretrain[@]+"${pretrain[@]}"} ${override:+"$override"} "$@"
  label "$name" finetune "--config.init_from=$runs/$name/pretrain" "$@"
done <<'ROWS'
mae mae
rmae rmae
rmae-independent rmae --config.objective.t2=independent
rmae-identity rmae --config.objective.t2=identity
cmae cmae
ROWS

[ ${#run[@]} -gt 0 ] && exit 0
echo "top-1 on the held-out images, 10 % of the labels and all:"
for name in random mae rmae rmae-independent rmae-identity cmae; do
  for part in 10-percent all-labels; do
    sed -n "s|.*\"top1\": \([0-9.]*\).*|$name $part \1|p" "$runs/$name/$part/result.json"
  done
done
