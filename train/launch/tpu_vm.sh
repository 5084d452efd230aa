#!/usr/bin/env bash
# Trains on every worker of a Cloud TPU VM or pod; JAX finds the others by itself. Stop and start it as you like: the
# run carries on from its newest checkpoint. Before, put the repository and `pip install -e '.[train,tpu]'` on all
# workers; or install a wheel there, and set REPOSITORY=. PACKAGE=unclip_jax.train.
set -euo pipefail
if [ $# -lt 4 ]; then
  echo "usage: $0 TPU_NAME ZONE STAGE RECIPE [--field.sub value ...]     (STAGE: clip, prior, decoder or upsampler)" >&2
  exit 2
fi
TPU=$1 ZONE=$2 STAGE=$3 RECIPE=$4 PACKAGE=${PACKAGE:-train}
shift 4
# The same lines run on every worker; a status of 75 says that another one is gone: start again, a few times.
train() {
  for attempt in 1 2 3 4 5; do
    status=0
    python -m $PACKAGE.$STAGE $RECIPE "$@" || status=$?
    if [ $status -ne 75 ]; then break; fi
    echo "starting again after attempt $attempt" >&2
  done
  return $status
}
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  cd ${REPOSITORY:-unclip_jax}; STAGE=$STAGE RECIPE=$RECIPE PACKAGE=$PACKAGE; $(declare -f train); train ${*@Q}"
