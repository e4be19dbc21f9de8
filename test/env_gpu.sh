# Environment for training on NVIDIA GPUs; source it. Variables that are set already are kept.
# shellcheck shell=bash

# Crops and targets vary in size; expandable segments avoid fragmentation.
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF-expandable_segments:True}"
# A rank whose peer is gone ends with an error instead of waiting forever.
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING-1}"
