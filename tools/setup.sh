#!/usr/bin/env bash
#
# Sets up everything that training needs: bash tools/setup.sh [--help]
# Finds a Python that can run tools/setup_run.py, which does the work.

set -euo pipefail

unset CDPATH # with it, cd may go elsewhere and print the folder
HERE="${BASH_SOURCE[0]%setup.sh}"
HERE="$(cd -- "${HERE:-.}" && pwd)" # without dirname: PATH may have no programs at all
# shellcheck source=tools/find_python.sh
source "${HERE}/find_python.sh"
python="$(find_python)"
exec "${python}" -E -s "${HERE}/setup_run.py" "$@"
