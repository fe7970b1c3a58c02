#!/usr/bin/env bash
# Makes a virtual environment with the test tools and runs the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/environment.sh
source scripts/environment.sh
use_environment "[test]"
echo "== Checking the style"
ruff check . && ruff format --check .
echo "== Running the tests, a file at a time on each of two processes"
python -m pytest --numprocesses=2 --dist=loadfile "$@"
echo "== All tests passed. Next: bash scripts/quickstart.sh trains a detector in a few minutes."
