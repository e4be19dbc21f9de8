#!/usr/bin/env bash
# Test the NPU path on an emulated NPU: set up the packages of an NPU stack in a copy of the recipe under .npu/, build the
# emulator there, run test/npu/ on it.
# Usage: bash test/npu/run.sh [--stack=npu-2.1|npu-2.7|npu-2.8] [--ranks=N] [--prepare] [--emulator]
#                             [--update_golden] [-- PYTEST_ARGUMENTS]
#   --stack           packages to test with; default: npu-2.1
#   --ranks           processes of the demo's trainings, 1 to 8; default: 2
#   --prepare         set up and build, run nothing
#   --emulator        everything, with the emulator's own tests, which else run only if the emulator has changed since
#                     they last passed; if all pass with npu-2.1, emulator_tested.sha256 is written, to be committed
#   --update_golden   write what one training step does on the NPU into test/npu/golden/ instead of comparing with it
#   --                what follows goes to pytest, instead of all of test/npu, two at a time
[ "${-#*p}" != "$-" ] || {                                                                                         #  see tools/foreign_settings.sh
  exec "$(command -v bash || echo "${BASH:-bash}")" -p -- "${BASH_SOURCE:-$0}" "$@"                                #
  echo 'error: exec is a function of the caller here; unset it' >&2 && exit 1                                      #
}                                                                                                                  #
IFS= read -r line <"$0" && [[ $line != *$'\r' ]] || {                                                              #
  echo "error: $0 has line ends of Windows (CRLF); clone or copy the recipe without converting text" >&2 && exit 1 #
}                                                                                                                  #
set -euo pipefail

ROOT="$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd)"
readonly ROOT

fail() {
  echo "error: $*" >&2
  exit 1
}

# copy_recipe TO: copy the tracked and new files of the recipe, without results; files deleted here are deleted there.
copy_recipe() {
  local to=$1 list
  list="$(mktemp)"
  git -C "$ROOT" ls-files -z --cached --others --exclude-standard |
    grep -zv '^results/' | sort -zu >"$list"
  mkdir -p "$to"
  if [[ -f "$to/.files" ]]; then
    (cd "$to" && comm -z -23 .files "$list" | xargs -0 -r rm -f --)
  fi
  # A tracked file may be deleted without a commit.
  tar -C "$ROOT" --null --ignore-failed-read --warning=no-failed-read --files-from="$list" -cf - | tar -C "$to" -xf -
  mv "$list" "$to/.files"
}

main() {
  local stack=npu-2.1 prepare=0 emulator=0
  while (($#)); do
    case $1 in
      --stack=*) stack=${1#*=} ;;
      --ranks=[1-8]) export EMULATED_NPU_RANKS=${1#*=} ;;
      --ranks=*) fail "$1: 1 to 8" ;;
      --prepare) prepare=1 ;;
      --emulator) emulator=1 ;;
      --update_golden) export EMULATED_NPU_UPDATE_GOLDEN="$ROOT/test/npu/golden" ;;
      --)
        shift
        break
        ;;
      --help | -h)
        sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
      *) fail "unknown option '$1'; see bash test/npu/run.sh --help" ;;
    esac
    shift
  done
  [[ "$stack" =~ ^npu-2\.(1|7|8)$ ]] || fail "--stack=$stack: npu-2.1, npu-2.7 or npu-2.8"
  [[ "$(uname -sm)" == 'Linux x86_64' ]] || fail 'the emulator is built for Linux on x86_64'
  command -v g++ >/dev/null || fail 'g++ is needed to build the emulator (Debian: apt-get install g++)'

  local copy="$ROOT/.npu/$stack" python
  copy_recipe "$copy"
  cd "$copy"
  # Without CANN, set-up warns that torch_npu cannot be imported yet; the emulator is built next.
  bash tools/setup.sh --stack="$stack" --with_tests
  python="$copy/.venv/bin/python"
  "$python" test/npu/emulator/build.py "$copy/.emulator"
  if ((prepare)); then
    echo "ready: $python $copy/test/npu/emulator/emulate.py COMMAND"
    return
  fi
  if ((emulator)); then
    (($# == 0)) || fail '--emulator runs everything; give no pytest arguments'
    export EMULATED_NPU_OWN_TESTS=1
    set -- -n 2 --dist loadfile test/npu
  elif (($# == 0)); then
    set -- -n 2 --dist loadfile -m 'not release' test/npu
  fi
  "$python" test/npu/emulator/emulate.py "$python" -m pytest "$@"
  if ((emulator)) && [[ $stack == npu-2.1 ]]; then
    "$python" test/npu/own_tests.py "$ROOT/test/npu/emulator_tested.sha256"
  fi
}

main "$@"
