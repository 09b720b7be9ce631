#!/usr/bin/env bash
# Make .venv with Python 3.10 or 3.11 and requirements.txt in it. Does nothing when that is done already.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONPATH # pip skips what it sees there

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null; }

if [ ! -d .venv ] || ! fits .venv/bin/python; then
  for python in python3.11 python3.10 python3 python none; do
    # A version manager's shim may exist and still fail, so each one is run.
    if fits "$python"; then break; fi
  done
  if [ "$python" = none ]; then
    echo "no Python 3.10 or 3.11 with venv found (MONAI Label runs on no newer one); on Debian: apt install python3.11-venv" >&2
    exit 2
  fi
  echo "making .venv with $("$python" --version)"
  "$python" -m venv --clear .venv
fi

hash="$(.venv/bin/python -c 'import hashlib, pathlib; print(hashlib.sha256(pathlib.Path("requirements.txt").read_bytes()).hexdigest())')"
if [ "$(cat .venv/requirements.sha256 2>/dev/null || true)" != "$hash" ]; then
  echo "installing requirements.txt (several minutes and 10 GB the first time; $(df -Ph . | awk 'NR == 2 {print $4}') free here)"
  .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
  .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -q -r requirements.txt
  echo "$hash" >.venv/requirements.sha256 # last, so that an interrupted installation is taken up again
fi
