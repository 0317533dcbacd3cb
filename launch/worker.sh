#!/usr/bin/env bash
# Runs a job on one host of several, each of which runs this with the same arguments:
#
#   EXTRA=tpu launch/worker.sh --config=configs/bench.py --config.distributed=True
#
# Sets the project up first, with what the chip needs (EXTRA: tpu or cuda; none for a CPU). Which host this is comes
# from the cluster (Cloud TPU, GKE, Slurm: `srun launch/worker.sh …`, Open MPI), or from JAX_COORDINATOR_ADDRESS,
# JAX_NUM_PROCESSES and JAX_PROCESS_ID. On one host, leave --config.distributed out.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! launch/find_python.sh >/dev/null 2>&1; then
  # Cloud images may have an older Python only; uv brings one that find_python.sh sees.
  python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.12
fi
make --no-print-directory setup

# Once a change of the pins, as in the Makefile.
if [ -n "${EXTRA:-}" ]; then
  stamp=".venv/.extra-$EXTRA"
  if [ constraints.txt -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    .venv/bin/python -m pip --disable-pip-version-check --quiet install \
      --constraint constraints.txt --no-build-isolation --editable ".[$EXTRA]"
    touch "$stamp"
  fi
fi

export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-1}"

exec .venv/bin/python -m flexjax.launch "$@"
