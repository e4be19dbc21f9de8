// Attention as torch_npu's fused operator has it, which torch.nn.functional.scaled_dot_product_attention calls on NPU from
// the torch 2.7 stack on:
//   out = softmax(scale * query key^T, without the pairs that atten_mask marks) value
// Its documentation: torch_npu.npu_fusion_attention, layout BNSD (batch, heads, sequence, head dimension).
#include <torch/library.h>
#include <torch/version.h>

#include "scope.h"

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 7

namespace emulated {

namespace {

using Optional = c10::optional<at::Tensor>;

bool given(const Optional &tensor) { return tensor && tensor->defined() && tensor->numel() > 0; }

// Refuse what the operator refuses, and what the recipe does not ask for and is not computed here.
void check(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, int64_t heads, c10::string_view layout,
           const Optional &pse, const Optional &padding_mask, const Optional &atten_mask, double keep_prob, int64_t sparse_mode,
           const Optional &sink) {
  const char *name = "npu_fusion_attention: ";
  const auto type = query.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, name, "dtype ", type,
              "; the operator takes float16, bfloat16 and float32");
  TORCH_CHECK(key.scalar_type() == type && value.scalar_type() == type, name, "query, key and value differ in dtype");
  TORCH_CHECK(layout == "BNSD", name, "layout ", layout, " is not emulated");
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4, name, "layout BNSD needs four dimensions");
  TORCH_CHECK(query.size(1) == heads, name, "head_num ", heads, ", but query has ", query.size(1), " heads");
  TORCH_CHECK(key.size(1) == heads && value.size(1) == heads, name, "grouped heads are not emulated");
  TORCH_CHECK(query.size(3) == key.size(3) && key.size(2) == value.size(2) && query.size(0) == key.size(0) &&
                  key.size(0) == value.size(0),
              name, "shapes ", query.sizes(), ", ", key.sizes(), " and ", value.sizes(), " do not fit together");
  TORCH_CHECK(query.size(3) <= 512, name, "head dimension ", query.size(3), " is over 512");
  TORCH_CHECK(!given(pse) && !given(padding_mask) && !given(sink), name, "pse, padding_mask and sink are not emulated");
  TORCH_CHECK(keep_prob == 1., name, "dropout is not emulated");
  TORCH_CHECK(sparse_mode == 0 || sparse_mode == 1, name, "sparse_mode ", sparse_mode, " is not emulated");
  TORCH_CHECK(!given(atten_mask) || atten_mask->scalar_type() == at::kBool || atten_mask->scalar_type() == at::kByte, name,
              "atten_mask has dtype ", atten_mask->scalar_type(), "; the operator takes bool and uint8");
}

at::Tensor as_float(const at::Tensor &tensor) { return emulated::as_cpu(tensor).to(at::kFloat); }

at::Tensor logits(const at::Tensor &query, const at::Tensor &key, const Optional &atten_mask, double scale) {
  at::Tensor scores = at::matmul(as_float(query), as_float(key).mT()).mul_(scale);
  if (given(atten_mask)) {
    scores.masked_fill_(emulated::as_cpu(*atten_mask).to(at::kBool), -std::numeric_limits<float>::infinity());
  }
  return scores;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> forward(
    const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, int64_t heads, c10::string_view layout,
    const Optional &pse, const Optional &padding_mask, const Optional &atten_mask, double scale, double keep_prob, int64_t, int64_t,
    int64_t, at::OptionalSymIntArrayRef, const Optional &, const Optional &, int64_t sparse_mode, bool, bool, c10::string_view,
    const Optional &sink) {
  Scope scope("npu::npu_fusion_attention_v3");
  check(query, key, value, heads, layout, pse, padding_mask, atten_mask, keep_prob, sparse_mode, sink);
  const at::Tensor scores = logits(query, key, atten_mask, scale);
  const at::Tensor most = scores.amax(-1, true);
  const at::Tensor weights = (scores - most).exp();
  const at::Tensor sum = weights.sum(-1, true);
  const at::Tensor out = at::matmul(weights / sum, as_float(value)).to(query.scalar_type());
  auto statistic = [&](const at::Tensor &values) {  // the operator writes each eight times
    return to_npu(values.expand({-1, -1, -1, 8}).contiguous(), query.device());
  };
  const at::Tensor none = to_npu(at::empty({0}), query.device());
  return {to_npu(out, query.device()), statistic(most), statistic(sum), none, none, none};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, const at::Tensor &dy, int64_t heads,
    c10::string_view layout, const Optional &pse, const Optional &padding_mask, const Optional &atten_mask,
    const Optional &softmax_max, const Optional &softmax_sum, const Optional &, const Optional &attention_in, double scale,
    double keep_prob, int64_t, int64_t, int64_t, const Optional &, const Optional &, at::OptionalSymIntArrayRef, const Optional &,
    const Optional &, int64_t sparse_mode, bool, bool, c10::string_view, const Optional &sink) {
  Scope scope("npu::npu_fusion_attention_grad_v3");
  check(query, key, value, heads, layout, pse, padding_mask, atten_mask, keep_prob, sparse_mode, sink);
  TORCH_CHECK(given(softmax_max) && given(softmax_sum) && given(attention_in),
              "npu_fusion_attention_grad: needs softmax_max, softmax_sum and attention_in of the forward pass");
  auto statistic = [](const Optional &values) { return emulated::as_cpu(*values).slice(-1, 0, 1); };
  const at::Tensor weights =
      (logits(query, key, atten_mask, scale) - statistic(softmax_max)).exp() / statistic(softmax_sum);
  const at::Tensor grad = as_float(dy);
  const at::Tensor grad_value = at::matmul(weights.mT(), grad);
  const at::Tensor row = (grad * as_float(*attention_in)).sum(-1, true);
  const at::Tensor grad_scores = weights * (at::matmul(grad, as_float(value).mT()) - row) * scale;
  const at::Tensor grad_query = at::matmul(grad_scores, as_float(key));
  const at::Tensor grad_key = at::matmul(grad_scores.mT(), as_float(query));
  auto result = [&](const at::Tensor &values) { return to_npu(values.to(query.scalar_type()), query.device()); };
  const at::Tensor none = to_npu(at::empty({0}), query.device());
  return {result(grad_query), result(grad_key), result(grad_value), none, none};
}

}  // namespace

TORCH_LIBRARY_IMPL(npu, PrivateUse1, library) {
  library.impl("npu_fusion_attention_v3", &forward);
  library.impl("npu_fusion_attention_grad_v3", &backward);
}

}  // namespace emulated

#endif
