# Environment for training on CPUs; source it. What the user has set is kept.
# Threads per process (OMP_NUM_THREADS: cores / processes) are set by recipe/launch, which knows the processes.
# shellcheck shell=bash

# torch and the launcher shall see no accelerator, so that none is initialised or occupied.
export CUDA_VISIBLE_DEVICES=
export ASCEND_RT_VISIBLE_DEVICES=
