#!/usr/bin/env bash
# Set up what the tests need, then run all of them: linters, unit tests, comparisons with the unpatched upstream, the
# end-to-end runs of the launchers, and the NPU path on an emulated NPU (test/npu/run.sh), which needs a second stack.
# Usage: bash test/run_tests.sh [--quick] [-- PYTEST_ARGUMENTS]
#   --quick   leave out test/parity, test/e2e and test/npu, which train

set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly ROOT

fail() {
  echo "error: $*" >&2
  exit 2
}

lint() {
  local python=$1
  local -a scripts
  mapfile -t scripts < <(git -C "$ROOT" ls-files '*.sh' '*.sbatch' .ci/run | sed "s|^|$ROOT/|")
  "$python" -m ruff check "$ROOT"
  "$python" -m ruff format --check "$ROOT"
  "$python" "$ROOT/tools/upstream.py" check
  # Both are wheels in requirements/test.txt, so that a bare machine has them.
  "$(dirname "$python")/shellcheck" "${scripts[@]}"
  "$(dirname "$python")/shfmt" -i 2 -ci -d "${scripts[@]}"
}

main() {
  local -a folders=(test/unit test/parity test/e2e)
  local npu=1
  while (($#)); do
    case $1 in
      --quick)
        folders=(test/unit)
        npu=0
        ;;
      --)
        shift
        break
        ;;
      --help | -h)
        sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
      *) fail "unknown option '$1'; see bash test/run_tests.sh --help" ;;
    esac
    shift
  done
  bash "$ROOT/tools/setup.sh" --with_tests
  local python
  python=$(bash "$ROOT/tools/setup.sh" --quiet_if_ready --print_python)
  cd "$ROOT"
  lint "$python"
  # Two at a time, as most tests use one core or wait; those of a file stay together, for they share fixtures.
  "$python" -m pytest -n 2 --dist loadfile "${folders[@]}" "$@"
  if ((npu)); then
    bash "$ROOT/test/npu/run.sh"
  fi
}

main "$@"
