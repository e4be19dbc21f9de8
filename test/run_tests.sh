#!/usr/bin/env bash
# Set up what the tests need, then run them: linters, unit tests, comparisons with the unpatched upstream, the launchers
# end to end, and the NPU path on an emulated NPU (test/npu/run.sh), which needs a second stack. docs/tests.md lists
# what each tier holds.
# Usage: bash test/run_tests.sh [--quick | --release] [-- PYTEST_ARGUMENTS]
#   --quick     only linters and the tests that train nothing
#   --release   also the slow tests: the demo to its full mIoU, the recipe at its real size, compilers, a fault campaign,
#               the NPU path with eight ranks and with the newer stacks, and the emulator's own tests
#   --          what follows goes to pytest's first run, which is not the NPU's
# A part that fails keeps no other part from running. Exit status: 0 if every part passed, 1 if one failed, 2 if the
# set-up or an option did.
[ "${-#*p}" != "$-" ] || {                                                                                         #  see tools/foreign_settings.sh
  exec "$(command -v bash || echo "${BASH:-bash}")" -p -- "${BASH_SOURCE:-$0}" "$@"                                #
  echo 'error: exec is a function of the caller here; unset it' >&2 && exit 1                                      #
}                                                                                                                  #
IFS= read -r line <"$0" && [[ $line != *$'\r' ]] || {                                                              #
  echo "error: $0 has line ends of Windows (CRLF); clone or copy the recipe without converting text" >&2 && exit 1 #
}                                                                                                                  #
set -euo pipefail

ROOT="$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)"
readonly ROOT
readonly NPU_LOG="$ROOT/.npu/tests.log"

report=() # one line for each part
failed=0
beside= # process group of the NPU part

fail() {
  echo "error: $*" >&2
  exit 2
}

# part NAME COMMAND...: run a part of the tests, and record its result.
part() {
  local name=$1 start=$SECONDS status=0
  shift
  printf '\n== %s\n' "$name"
  "$@" || status=$?
  local result=passed
  if ((status)); then
    result="FAILED with status $status"
    failed=1
  fi
  report+=("$(printf '%-22s %5d s  %s' "$name" $((SECONDS - start)) "$result")")
}

# Called in a condition, in which `set -e` has no effect: each command records its own failure.
lint() {
  local python=$1 status=0 types checking
  local -a scripts texts
  # The types take as long as all the rest; they are checked on the other core.
  types=$(mktemp)
  "$python" -m mypy --config-file "$ROOT/pyproject.toml" >"$types" 2>&1 &
  checking=$!
  mapfile -t scripts < <(git -C "$ROOT" ls-files '*.sh' '*.sbatch' .ci/run | sed "s|^|$ROOT/|")
  "$python" -m ruff check "$ROOT" || status=1
  "$python" -m ruff format --check "$ROOT" || status=1
  "$python" "$ROOT/tools/upstream.py" check || status=1
  "$(dirname "$python")/lint-imports" --config "$ROOT/pyproject.toml" || status=1
  mapfile -t texts < <(git -C "$ROOT" ls-files '*.py' '*.sh' '*.md' '*.txt' '*.toml' '*.patch' ':!results' ':!*.zh-CN.md' |
    sed "s|^|$ROOT/|")
  "$(dirname "$python")/codespell" --ignore-words-list=cann "${texts[@]}" || status=1
  # Both are wheels in requirements/test.txt, so a bare machine has them too.
  "$(dirname "$python")/shellcheck" "${scripts[@]}" || status=1
  "$(dirname "$python")/shfmt" -i 2 -ci -d "${scripts[@]}" || status=1
  wait "$checking" || status=1
  cat "$types"
  rm -f "$types"
  return "$status"
}

# Set up the NPU stack beside the recipe's own, and run its tests beside the others: set-ups and tests wait often, which
# leaves cores idle. With --prepare the NPU's tests wait for their turn.
npu_in_background() {
  mkdir -p "$(dirname "$NPU_LOG")"
  set -m # a process group of its own can be ended with all that it started
  bash -c 'bash "$0" --prepare && { [[ ${1-} == --prepare ]] || bash "$0"; }' \
    "$ROOT/test/npu/run.sh" "$@" >"$NPU_LOG" 2>&1 </dev/null &
  beside=$!
  set +m
  trap 'kill -- -"$beside" 2>/dev/null || true' EXIT
}

# Wait for what runs beside, and show what it said if it failed, or in any case with --show.
npu_of_background() {
  local status=0
  wait "$beside" || status=$?
  trap - EXIT
  if ((status)) || [[ ${1-} == --show ]]; then
    cat "$NPU_LOG"
  fi
  return "$status"
}

npu_emulator() {
  npu_of_background && bash "$ROOT/test/npu/run.sh" --emulator
}

main() {
  unset PYTHONDONTWRITEBYTECODE # some images set it; then each process of a test would compile what it imports
  local tier=default
  while (($#)); do
    case $1 in
      --quick | --release)
        [[ $tier == default || --$tier == "$1" ]] || fail "give --quick or --release, not both"
        tier=${1#--}
        ;;
      --)
        shift
        break
        ;;
      --help | -h)
        sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
      *) fail "unknown option '$1'; see bash test/run_tests.sh --help" ;;
    esac
    shift
  done
  case $tier in
    default) npu_in_background ;;
    release) npu_in_background --prepare ;;
  esac
  bash "$ROOT/tools/setup.sh" --with_tests || fail 'the set-up failed; the lines above say why'
  local python
  python=$(bash "$ROOT/tools/setup.sh" --quiet_if_ready --print_python)
  cd "$ROOT"

  # One more than CI has cores, with one thread each: many tests wait. Those of --quick do not.
  local processes=3
  local -a tests=(test -m 'not release' --ignore=test/npu)
  local -a slow=(--ignore=test/e2e --ignore=test/parity --ignore=test/setup --ignore=test/upstream --ignore=test/patches)
  case $tier in
    quick)
      processes=2
      tests=(test -m 'not release and not trains' --ignore=test/npu "${slow[@]}")
      ;;
    release) tests=(test --ignore=test/npu) ;;
  esac
  part 'lint' lint "$python"
  # The tests of a file share fixtures and stay together.
  part 'tests' env OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" \
    "$python" -m pytest -n "$processes" --dist loadfile "${tests[@]}" "$@"
  case $tier in
    default) part 'NPU, beside these' npu_of_background --show ;;
    release)
      part 'NPU' npu_emulator
      part 'NPU, eight ranks' bash "$ROOT/test/npu/run.sh" --ranks=8 -- test/npu/test_demo.py
      part 'NPU, npu-2.7' bash "$ROOT/test/npu/run.sh" --stack=npu-2.7
      part 'NPU, npu-2.8' bash "$ROOT/test/npu/run.sh" --stack=npu-2.8
      part 'fault campaign' bash "$ROOT/test/faults/run.sh" --count=40
      part 'environments' "$python" "$ROOT/test/faults/environments.py" --count=30
      ;;
  esac
  printf '\n== summary\n'
  printf '%s\n' "${report[@]}"
  return "$failed"
}

main "$@"
