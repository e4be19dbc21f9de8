// Attention as torch_npu's fused operator has it:
//   out = softmax(scale * query key^T, without the pairs that atten_mask marks) value
// The recipe calls it with the torch 2.1 stack. From the torch 2.7 stack on, torch.nn.functional.scaled_dot_product_attention
// calls its third version. Its documentation: torch_npu.npu_fusion_attention; the layouts BNSD and BSND are orders of batch,
// heads (N), sequence and head dimension.
#include <torch/library.h>
#include <torch/version.h>

#include "scope.h"

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
  TORCH_CHECK(layout == "BNSD" || layout == "BSND", name, "layout ", layout, " is not emulated");
  TORCH_CHECK(query.dim() == 4 && key.dim() == 4 && value.dim() == 4, name, "layout ", layout, " needs four dimensions");
  const int64_t head_axis = layout == "BNSD" ? 1 : 2, sequence = 3 - head_axis;
  TORCH_CHECK(query.size(head_axis) == heads, name, "head_num ", heads, ", but query has ", query.size(head_axis), " heads");
  TORCH_CHECK(key.size(head_axis) == heads && value.size(head_axis) == heads, name, "grouped heads are not emulated");
  TORCH_CHECK(query.size(3) == key.size(3) && key.size(sequence) == value.size(sequence) && query.size(0) == key.size(0) &&
                  key.size(0) == value.size(0),
              name, "shapes ", query.sizes(), ", ", key.sizes(), " and ", value.sizes(), " do not fit together");
  TORCH_CHECK(query.size(3) <= 512, name, "head dimension ", query.size(3), " is over 512");
  TORCH_CHECK(!given(pse) && !given(padding_mask) && !given(sink), name, "pse, padding_mask and sink are not emulated");
  TORCH_CHECK(keep_prob == 1., name, "dropout is not emulated");
  TORCH_CHECK(sparse_mode == 0 || sparse_mode == 1, name, "sparse_mode ", sparse_mode, " is not emulated");
  TORCH_CHECK(!given(atten_mask) || atten_mask->scalar_type() == at::kBool || atten_mask->scalar_type() == at::kByte, name,
              "atten_mask has dtype ", atten_mask->scalar_type(), "; the operator takes bool and uint8");
}

// As float32 on the host, (batch, heads, sequence, dimension).
at::Tensor heads_first(const at::Tensor &tensor, c10::string_view layout) {
  const at::Tensor values = emulated::as_cpu(tensor).to(at::kFloat);
  return layout == "BNSD" ? values : values.transpose(1, 2);
}

// What heads_first was given, with other values.
at::Tensor as_given(const at::Tensor &values, c10::string_view layout, const at::Tensor &like) {
  return to_npu((layout == "BNSD" ? values : values.transpose(1, 2)).to(like.scalar_type()).contiguous(), like.device());
}

at::Tensor logits(const at::Tensor &query, const at::Tensor &key, const Optional &atten_mask, double scale) {
  at::Tensor scores = at::matmul(query, key.mT()).mul_(scale);
  if (given(atten_mask)) {
    scores.masked_fill_(emulated::as_cpu(*atten_mask).to(at::kBool), -std::numeric_limits<float>::infinity());
  }
  return scores;
}

at::Tensor nothing(const at::Tensor &like) { return to_npu(at::empty({0}), like.device()); }

// Result, and the largest logit and the sum of each row, which the operator writes eight times each.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend(const at::Tensor &query, const at::Tensor &key, const at::Tensor &value,
                                                      c10::string_view layout, const Optional &atten_mask, double scale) {
  const at::Tensor scores = logits(heads_first(query, layout), heads_first(key, layout), atten_mask, scale);
  const at::Tensor most = scores.amax(-1, true);
  const at::Tensor weights = (scores - most).exp();
  const at::Tensor sum = weights.sum(-1, true);
  auto statistic = [&](const at::Tensor &values) {
    return to_npu(values.expand({-1, -1, -1, 8}).contiguous(), query.device());
  };
  return {as_given(at::matmul(weights / sum, heads_first(value, layout)), layout, query), statistic(most), statistic(sum)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_backward(const at::Tensor &query, const at::Tensor &key,
                                                               const at::Tensor &value, const at::Tensor &dy,
                                                               c10::string_view layout, const Optional &atten_mask,
                                                               const Optional &softmax_max, const Optional &softmax_sum,
                                                               const Optional &attention_in, double scale) {
  TORCH_CHECK(given(softmax_max) && given(softmax_sum) && given(attention_in),
              "npu_fusion_attention_grad: needs softmax_max, softmax_sum and attention_in of the forward pass");
  auto statistic = [](const Optional &values) { return emulated::as_cpu(*values).slice(-1, 0, 1); };
  const at::Tensor q = heads_first(query, layout), k = heads_first(key, layout), grad = heads_first(dy, layout);
  const at::Tensor weights = (logits(q, k, atten_mask, scale) - statistic(softmax_max)).exp() / statistic(softmax_sum);
  const at::Tensor row = (grad * heads_first(*attention_in, layout)).sum(-1, true);
  const at::Tensor grad_scores = weights * (at::matmul(grad, heads_first(value, layout).mT()) - row) * scale;
  return {as_given(at::matmul(grad_scores, k), layout, query), as_given(at::matmul(grad_scores.mT(), q), layout, query),
          as_given(at::matmul(weights.mT(), grad), layout, query)};
}

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 7

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> forward(
    const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, int64_t heads, c10::string_view layout,
    const Optional &pse, const Optional &padding_mask, const Optional &atten_mask, double scale, double keep_prob, int64_t, int64_t,
    int64_t, at::OptionalSymIntArrayRef, const Optional &, const Optional &, int64_t sparse_mode, bool, bool, c10::string_view,
    const Optional &sink) {
  Scope scope("npu::npu_fusion_attention_v3");
  check(query, key, value, heads, layout, pse, padding_mask, atten_mask, keep_prob, sparse_mode, sink);
  const auto [out, most, sum] = attend(query, key, value, layout, atten_mask, scale);
  return {out, most, sum, nothing(query), nothing(query), nothing(query)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, const at::Tensor &dy, int64_t heads,
    c10::string_view layout, const Optional &pse, const Optional &padding_mask, const Optional &atten_mask,
    const Optional &softmax_max, const Optional &softmax_sum, const Optional &, const Optional &attention_in, double scale,
    double keep_prob, int64_t, int64_t, int64_t, const Optional &, const Optional &, at::OptionalSymIntArrayRef, const Optional &,
    const Optional &, int64_t sparse_mode, bool, bool, c10::string_view, const Optional &sink) {
  Scope scope("npu::npu_fusion_attention_grad_v3");
  check(query, key, value, heads, layout, pse, padding_mask, atten_mask, keep_prob, sparse_mode, sink);
  const auto [grad_query, grad_key, grad_value] =
      attend_backward(query, key, value, dy, layout, atten_mask, softmax_max, softmax_sum, attention_in, scale);
  return {grad_query, grad_key, grad_value, nothing(query), nothing(query)};
}

#else

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, int64_t, int64_t, int64_t> forward(
    const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, int64_t heads, c10::string_view layout,
    const Optional &pse, const Optional &padding_mask, const Optional &atten_mask, double scale, double keep_prob, int64_t, int64_t,
    int64_t, at::OptionalIntArrayRef, at::OptionalIntArrayRef, at::OptionalIntArrayRef, int64_t sparse_mode, bool, bool,
    c10::string_view) {
  Scope scope("npu::npu_fusion_attention");
  check(query, key, value, heads, layout, pse, padding_mask, atten_mask, keep_prob, sparse_mode, {});
  const auto [out, most, sum] = attend(query, key, value, layout, atten_mask, scale);
  return {out, most, sum, nothing(query), 0, 0, 0};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor &query, const at::Tensor &key, const at::Tensor &value, const at::Tensor &dy, int64_t heads,
    c10::string_view layout, const Optional &pse, const Optional &padding_mask, const Optional &atten_mask,
    const Optional &softmax_max, const Optional &softmax_sum, const Optional &, const Optional &attention_in, double scale,
    double keep_prob, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, at::OptionalIntArrayRef, at::OptionalIntArrayRef,
    at::OptionalIntArrayRef, int64_t sparse_mode, bool, bool, c10::string_view) {
  Scope scope("npu::npu_fusion_attention_grad");
  check(query, key, value, heads, layout, pse, padding_mask, atten_mask, keep_prob, sparse_mode, {});
  const auto [grad_query, grad_key, grad_value] =
      attend_backward(query, key, value, dy, layout, atten_mask, softmax_max, softmax_sum, attention_in, scale);
  return {grad_query, grad_key, grad_value, nothing(query)};
}

#endif

}  // namespace

TORCH_LIBRARY_IMPL(npu, PrivateUse1, library) {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 7
  library.impl("npu_fusion_attention_v3", &forward);
  library.impl("npu_fusion_attention_grad_v3", &backward);
#else
  library.impl("npu_fusion_attention", &forward);
  library.impl("npu_fusion_attention_grad", &backward);
#endif
}

}  // namespace emulated
