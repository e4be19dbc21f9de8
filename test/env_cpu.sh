# Environment for training on CPUs; source it. Variables that are set already are kept.
# Threads per process (OMP_NUM_THREADS: cores / processes) are set by recipe/launch, which knows their number.
# shellcheck shell=bash

# Hides accelerators from torch and the launcher, so that none is initialised or occupied.
export CUDA_VISIBLE_DEVICES=
export ASCEND_RT_VISIBLE_DEVICES=

# glibc keeps freed blocks of up to 4 GiB, and up to 8 GiB at the end of the heap. The kernel would fill returned blocks
# with zeros before their next use, which causes nearly all page faults of a training step (docs/performance.md).
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4294967296}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-8589934592}"
