#!/usr/bin/env bash
# Measures every figure of a GPU: bash tools/bench_gpu.sh [OUTPUT_FOLDER] [CITYSCAPES_ROOT]
#
# Fills the table of docs/performance.md ("Accelerators"). Needs one idle GPU, about 20 minutes and, for batch 8, some 40 GB
# of its memory. Every figure goes to OUTPUT_FOLDER as JSON with its command. If the losses of a step differ from
# upstream's, it ends with an error and leaves no figure. A mode that fails is named at the end; the others still run.
[ "${-#*p}" != "$-" ] || {                                                                                         #  see tools/foreign_settings.sh
  exec "$(command -v bash || echo "${BASH:-bash}")" -p -- "${BASH_SOURCE:-$0}" "$@"                                #
  echo 'error: exec is a function of the caller here; unset it' >&2 && exit 1                                      #
}                                                                                                                  #
IFS= read -r line <"$0" && [[ $line != *$'\r' ]] || {                                                              #
  echo "error: $0 has line ends of Windows (CRLF); clone or copy the recipe without converting text" >&2 && exit 1 #
}                                                                                                                  #
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-results/$(date +%F)_gpu_bench}
data=${2:-}
python=${PYTHON:-.venv/bin/python}
failed=()

measure() { # measure NAME ARGUMENTS...: one call of bench.py
  local name=$1
  shift
  echo "== $name"
  "$python" tools/bench.py "$@" --json="$out/$name.json" || failed+=("$name")
}

main() {
  if [[ -e $out ]]; then
    echo "error: $out exists; name another folder" >&2
    exit 1
  fi
  mkdir -p "$out"
  local size=(--device=cuda --backbone=swin-b --crop=512x1024 --warmup=3 --repeats=20)
  nvidia-smi >"$out/nvidia-smi.txt"
  MMCV_DEFORM_ATTN=triton "$python" - <<'END' || failed+=('Triton kernels')
import torch
from recipe.models import add_norm, token_attention
from recipe.models.deform_attn_check import compare

for dtype in (torch.float32, torch.bfloat16, torch.float16):
    compare(torch.device('cuda'), dtype)
print('Triton kernel of deformable attention: right in float32, bfloat16 and float16')
add_norm.check(torch.device('cuda'))
print('Triton kernels of sum and norm: right in float32 and bfloat16')
for dtype in token_attention.DTYPES:
    for window_size in (7, 12):
        token_attention.check(torch.device('cuda'), dtype, window_size)
print('Triton kernels of the attention in windows: right in bfloat16 and float16')
END
  "$python" -m pytest -q test/engine/test_on_a_gpu.py | tee "$out/tests.txt" || failed+=('tests on a GPU')
  measure batch2_fp32 step "${size[@]}" --batch=2
  measure batch2_bf16_against_fp32 step "${size[@]}" --batch=2 --amp=bf16
  measure batch2_bf16_against_amp step "${size[@]}" --batch=2 --amp=bf16 --upstream_amp=fp16
  measure batch2_bf16_graphs step "${size[@]}" --batch=2 --amp=bf16 --compile=ours
  measure batch2_bf16_one_graph step --device=cuda --backbone=swin-b --crop=512x1024 --warmup=13 --repeats=20 --batch=2 --amp=bf16 --graph
  measure batch8_bf16 step "${size[@]}" --batch=8 --amp=bf16
  measure batch8_bf16_graphs step "${size[@]}" --batch=8 --amp=bf16 --compile=ours
  measure memory_batch2_bf16_against_amp profile "${size[@]}" --batch=2 --amp=bf16 --upstream_amp=fp16 --trace="$out/trace"
  measure validation validation --device=cuda --backbone=swin-b --crop=512x1024 --images=50 --repeats=3 --workers=8 \
    ${data:+"--data_path=$data"}
  for kernel in pytorch triton; do
    MMCV_DEFORM_ATTN=$kernel measure "attention_$kernel" step "${size[@]}" --batch=2 --amp=bf16
  done
  echo "figures: $out"
  if ((${#failed[@]})); then
    echo "error: no figures of: ${failed[*]}" >&2
    exit 1
  fi
}

main "$@"
