#!/usr/bin/env bash
# Makes the pinned Python environment that tests/parity, tests/golden and bench/peers compare with,
# and beside it FOLDER_adapterhub for AdapterHub's library, which uses the torch of the first.
#   bash tests/parity/setup.sh [FOLDER]        default: build/peers
# Afterwards: export SHARDTUNE_PEERS_PYTHON=FOLDER/bin/python
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:-build/peers}
python3 -c 'import venv, ensurepip' 2>/dev/null ||
  { echo "error: Python's venv is missing. Install python3-venv, then run this again." >&2; exit 66; }
install() {  # FOLDER REQUIREMENTS
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check -r "$2" ||
    { echo "error: pip could not install $2 into $1." \
        "Check the network and pip's settings (pip config list)." >&2; exit 66; }
}
packages() {  # FOLDER
  "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}
python3 -m venv "$folder"
install "$folder" tests/parity/requirements.txt
python3 -m venv "${folder}_adapterhub"
packages "$folder" > "$(packages "${folder}_adapterhub")/peers.pth"
install "${folder}_adapterhub" tests/parity/requirements_adapterhub.txt
echo "export SHARDTUNE_PEERS_PYTHON=$(cd "$folder" && pwd)/bin/python"
