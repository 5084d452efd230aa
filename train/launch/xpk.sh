#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster through xpk (pip install xpk), from a container image that holds the repository
# and `.[train,tpu]`. With NUM_SLICES > 1 give --run.mesh.slices the same number. Lost slices are started again by the
# cluster. PACKAGE=unclip_jax.train where the image holds an installed wheel instead.
set -euo pipefail
if [ $# -lt 5 ]; then
  echo "usage: $0 CLUSTER TPU_TYPE IMAGE STAGE RECIPE [--field.sub value ...]     (TPU_TYPE: such as v5litepod-256)" >&2
  exit 2
fi
CLUSTER=$1 TPU_TYPE=$2 IMAGE=$3 STAGE=$4 RECIPE=$5 PACKAGE=${PACKAGE:-train}
shift 5
COMMAND='python -m $PACKAGE.$STAGE $RECIPE "$@"'
xpk workload create \
  --cluster "$CLUSTER" \
  --workload "${WORKLOAD:-unclip-$STAGE-$RECIPE}" \
  --tpu-type "$TPU_TYPE" \
  --num-slices "${NUM_SLICES:-1}" \
  --max-restarts "${MAX_RESTARTS:-20}" \
  --docker-image "$IMAGE" \
  --command "STAGE=$STAGE RECIPE=$RECIPE PACKAGE=$PACKAGE; set -- ${*@Q}; $COMMAND"
