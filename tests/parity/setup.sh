#!/usr/bin/env bash
# Makes the pinned Python environment that tests/parity, tests/golden and bench/peers compare with.
#   bash tests/parity/setup.sh [FOLDER]        default: build/peers
# Afterwards: export SHARDTUNE_PEERS_PYTHON=FOLDER/bin/python
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build/peers}
python3 -c 'import venv, ensurepip' 2>/dev/null ||
  { echo "error: Python's venv is missing. Install python3-venv, then run this again." >&2; exit 66; }
python3 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
  -r tests/parity/requirements.txt ||
  { echo "error: pip could not install tests/parity/requirements.txt into $folder." \
      "Check the network and pip's settings (pip config list)." >&2; exit 66; }
echo "export SHARDTUNE_PEERS_PYTHON=$(cd "$folder" && pwd)/bin/python"
