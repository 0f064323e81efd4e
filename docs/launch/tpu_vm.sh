#!/usr/bin/env bash
# A run on all hosts of a TPU slice. From your own machine, with gcloud set up:
#   TPU=my-slice ZONE=us-central2-b WORKDIR=/mnt/shared/run docs/launch/tpu_vm.sh
# Not run here: there is no TPU.
set -euo pipefail
: "${TPU:?name of the slice}" "${ZONE:?its zone}" "${WORKDIR:?a folder all hosts share}"
REPOSITORY=${REPOSITORY:-$(git remote get-url origin)}
CONFIG=${CONFIG:-configs/vit_i1k.py}

everywhere() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

everywhere "test -d vit_jax || git clone '$REPOSITORY' vit_jax
  cd vit_jax && python3 -m venv .venv
  .venv/bin/pip install -q -c constraints.txt '.[tpu]'"
# The hosts of a slice find each other. 75: one was preempted, all have saved.
until everywhere "cd vit_jax && .venv/bin/python -m vit_jax train \
  --config='$CONFIG' --workdir='$WORKDIR' --distributed"; do
  echo 'ended early; the same command goes on in 30 s (Ctrl-C to leave it)'
  sleep 30
done
