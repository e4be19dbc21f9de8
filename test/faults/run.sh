#!/usr/bin/env bash
# Breaks trainings in many ways, has them go on, and compares them bit by bit with one that was left alone; on the CPU.
# Usage: bash test/faults/run.sh [--seed=N] [--count=N] [--begin=N] [--end=N] [--only=KIND] [--list] [--out=DIR]
#   --seed    which faults are drawn, and when they strike (0)
#   --count   how many (120); each kind comes up in turn
#   --begin   leave out the first N, which ran before
#   --end     leave out those behind the first N
#   --only    one kind of fault
#   --list    the kinds
#   --out     a new folder for the command, versions and the table; without it nothing is kept
[ "${-#*p}" != "$-" ] || {                                                                                         #  see tools/foreign_settings.sh
  exec "$(command -v bash || echo "${BASH:-bash}")" -p -- "${BASH_SOURCE:-$0}" "$@"                                #
  echo 'error: exec is a function of the caller here; unset it' >&2 && exit 1                                      #
}                                                                                                                  #
IFS= read -r line <"$0" && [[ $line != *$'\r' ]] || {                                                              #
  echo "error: $0 has line ends of Windows (CRLF); clone or copy the recipe without converting text" >&2 && exit 1 #
}                                                                                                                  #
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
readonly ROOT

main() {
  if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    return
  fi
  local python
  python="$(bash "${ROOT}/tools/setup.sh" --quiet_if_ready --print_python)"
  exec env PYTHONPATH="${ROOT}:${ROOT}/test/support:${ROOT}/test/e2e:${ROOT}/test/faults:${PYTHONPATH:-}" \
    "${python}" -c 'import sys, campaign; sys.exit(campaign.main())' "$@"
}

main "$@"
