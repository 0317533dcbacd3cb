#!/usr/bin/env bash
# Runs a job on this machine:  launch/local.sh --config=configs/bench.py [--config.FIELD=VALUE …]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
make --no-print-directory setup

# JAX brings its own threads; a second pool in a library beside it only takes cores from it.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-1}"

exec .venv/bin/python -m flexjax.launch "$@"
