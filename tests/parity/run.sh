#!/usr/bin/env bash
# Runs the comparisons with Python peers, or skips (77) with the reason: run.sh BINARY PYTHON_OR_EMPTY TEST.py
set -u
python=${SHARDTUNE_PEERS_PYTHON:-${2:-}}
[ -n "$python" ] || { echo "SKIPPED: SHARDTUNE_PEERS_PYTHON is not set; tests/parity/setup.sh makes it"; exit 77; }
[ -x "$python" ] || { echo "FAILED: SHARDTUNE_PEERS_PYTHON=$python is not there"; exit 1; }
if [ "$3" = adapterhub_test.py ]; then
  python=${SHARDTUNE_ADAPTERHUB_PYTHON:-${python%/bin/*}_adapterhub/bin/python}
  [ -x "$python" ] || { echo "SKIPPED: $python is not there; tests/parity/setup.sh makes it"; exit 77; }
fi
export SHARDTUNE_BINARY=$1
exec "$python" "$(dirname "$0")/$3"
