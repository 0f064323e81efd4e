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
  cd vit_jax && git pull -q --ff-only && python3 -m venv .venv
  .venv/bin/pip install -q -c constraints.txt '.[tpu]'"
# The hosts of a slice find each other. gcloud gives the exit code of the first
# host that failed; 2 is a mistake, which no other start would mend.
quick=0
while true; do
  begun=$SECONDS code=0
  everywhere "cd vit_jax && .venv/bin/python -m vit_jax train \
    --config='$CONFIG' --workdir='$WORKDIR' --distributed" || code=$?
  case $code in
    0 | 2) exit $code ;;
  esac
  # What crashes at once, five times in a row, would only come again.
  if [ "$code" -eq 75 ] || [ $((SECONDS - begun)) -ge 60 ]; then quick=0; fi
  quick=$((quick + 1))
  [ $quick -lt 5 ] || exit $code
  echo "ended with $code; on from the last checkpoint in 30 s (Ctrl-C to leave it)" >&2
  sleep 30
done
