#!/usr/bin/env bash
# Prints the path of a Python that can make the project's environment, or says on stderr how to get one.
# Each candidate is run: a name on PATH may be a shim that fails, or a Python without venv.
set -euo pipefail

works='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 12))'

candidates() {
  # PYTHON=/path/to/python chooses. Else 3.12, on which constraints.txt was made, comes first.
  if [ -n "${PYTHON:-}" ]; then
    printf '%s\n' "$PYTHON"
    return
  fi
  printf '%s\n' python3.12 python3.13 python3.14 python3 python
  for root in "${PYENV_ROOT:-$HOME/.pyenv}/versions" "${XDG_DATA_HOME:-$HOME/.local/share}/uv/python"; do
    for minor in 12 13 14; do
      printf '%s\n' "$root"/*3."$minor"[.-]*/bin/python3
    done
  done
}

tried=()
while IFS= read -r candidate; do
  if ! command -v "$candidate" >/dev/null 2>&1; then
    [ "$candidate" != "${PYTHON:-}" ] || tried+=("$candidate (not found)")
    continue
  fi
  if "$candidate" -c "$works" >/dev/null 2>&1; then
    command -v "$candidate"
    exit 0
  fi
  said=$("$candidate" --version 2>&1 | head -n 1) || true
  tried+=("$candidate (${said:-does not run})")
done < <(candidates)

cat >&2 <<MESSAGE
flexjax needs Python 3.12 or newer with venv, and none was found that runs. Tried:
$(printf '  %s\n' "${tried[@]:-nothing: no python is on PATH}")
Get one by any of these, then run make again:
  uv python install 3.12
  pyenv install 3.12
  apt-get install python3 python3-venv      (Debian 13, Ubuntu 24.04 and newer)
or name one that you have:  make setup PYTHON=/path/to/python3.12
MESSAGE
exit 1
