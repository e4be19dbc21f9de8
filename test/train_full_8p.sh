#!/usr/bin/env bash
# Trains, validates and reports mIoU and images per second. Options: bash test/train_full_8p.sh --help

# shellcheck source=/dev/null
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
launch full "$@"
