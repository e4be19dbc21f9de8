# Takes away settings of the caller that would change what a script, or a program that it starts, does.
#
# Each script of this repository begins with the same lines. They start it again as `bash -p`, which also another shell
# (`sh test/train_full_8p.sh`) can do: then BASH_ENV is not read, and SHELLOPTS, CDPATH and the functions that the caller
# has exported have no effect. And they refuse a copy with CRLF, so each of these lines ends with a comment.
# shellcheck shell=bash

# require_current_folder: without one, programs fail in ways that do not say so.
require_current_folder() {
  pwd -P >/dev/null 2>&1 || {
    echo 'error: the current folder was deleted; change to one that exists' >&2
    exit 2
  }
}

# drop_foreign_settings: with the settings of notebooks and IDEs Python would do something else, or fail.
drop_foreign_settings() {
  local name
  set +o posix
  unset POSIXLY_CORRECT BASH_ENV ENV CDPATH GLOBIGNORE GREP_OPTIONS __PYVENV_LAUNCHER__
  export -n SHELLOPTS BASHOPTS
  for name in "${!PYTHON@}"; do
    case ${name} in
      # As recipe/core/clean_environment.py; CANN puts packages of its own on PYTHONPATH.
      PYTHONPATH | PYTHONDONTWRITEBYTECODE | PYTHONPYCACHEPREFIX | PYTHONUNBUFFERED | PYTHONUSERBASE | PYTHONNOUSERSITE) ;;
      PYTHONUTF8) [[ ${!name} == [01] ]] || unset "${name}" ;;
      *) unset "${name}" ;;
    esac
  done
}

# drop_exported_functions SCRIPT ARGUMENTS: start a script again if the caller has exported functions. This bash does not
# use them, but other scripts would, such as those by which pyenv and conda start Python.
drop_exported_functions() {
  local entry
  local -a without=()
  if [[ ! -r /proc/self/environ ]]; then return; fi
  while IFS= read -r -d '' entry; do
    if [[ ${entry} == BASH_FUNC_* ]]; then without+=(-u "${entry%%=*}"); fi
  done </proc/self/environ
  if ((${#without[@]})); then exec env "${without[@]}" "${BASH}" -p -- "$@"; fi
}
