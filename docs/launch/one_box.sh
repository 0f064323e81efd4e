#!/usr/bin/env bash
# A run on all GPUs of this machine, started again until it is finished:
#   docs/launch/one_box.sh --config=configs/vit_i1k.py --workdir=runs/vit
# Not run here with a GPU; with CPUs it was.
set -u
cd "$(dirname "$0")/../.."
while true; do
  begun=$SECONDS
  "${PYTHON:-.venv/bin/python}" -m vit_jax train "$@"
  code=$?
  case $code in
    0 | 2) exit $code ;;  # finished, or a mistake in the command
    75) exit $code ;;     # somebody sent a signal: saved
  esac
  # A crash at once would only come again.
  [ $((SECONDS - begun)) -ge 60 ] || exit $code
  echo "ended with $code; on from the last checkpoint in 10 s" >&2
  sleep 10
done
