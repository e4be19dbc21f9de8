// Kernels for what torch_npu asks an NPU for and torch's CPU does not have, from the operators' definitions.
#include <torch/library.h>

#include "scope.h"

namespace emulated {

namespace {

const std::set<std::string> kReferences = {"aten::matmul", "aten::matmul_backward", "aten::_amp_foreach_non_finite_check_and_unscale_",
                                           "aten::_amp_update_scale_"};

c10::optional<at::Tensor> as_cpu(const c10::optional<at::Tensor> &tensor) {
  return tensor && tensor->defined() ? c10::make_optional(emulated::as_cpu(*tensor)) : c10::nullopt;
}

// In float32 where torch's CPU has no half-precision product; results are rounded once.
at::Tensor wide(const at::Tensor &tensor) {
  const at::Tensor values = emulated::as_cpu(tensor);
  return tensor.scalar_type() == at::kHalf ? values.to(at::kFloat) : values;
}

// self @ other: one operator on an NPU, where torch makes it of several.
at::Tensor matmul(const at::Tensor &self, const at::Tensor &other) {
  Scope scope("aten::matmul");
  TORCH_CHECK(self.device() == other.device(), "aten::matmul: expected all tensors to be on the same device, found ",
              self.device(), " and ", other.device());
  return to_npu(at::matmul(wide(self), wide(other)).to(self.scalar_type()), self.device());
}

// Gradients of self @ other (torch.matmul's cases: vectors, matrices, batches that broadcast), where mask wants them.
std::tuple<at::Tensor, at::Tensor> matmul_backward(const at::Tensor &grad, const at::Tensor &self, const at::Tensor &other,
                                                   std::array<bool, 2> mask) {
  Scope scope("aten::matmul_backward");
  // A vector is a matrix of one row on the left, of one column on the right.
  at::Tensor x = wide(self), y = wide(other), g = wide(grad);
  if (self.dim() == 1) {
    g = other.dim() == 1 ? g.reshape({1, 1}) : g.unsqueeze(-2);
    x = x.unsqueeze(0);
  } else if (other.dim() == 1) {
    g = g.unsqueeze(-1);
  }
  if (other.dim() == 1) y = y.unsqueeze(1);
  at::Tensor grad_self, grad_other;
  if (mask[0]) grad_self = to_npu(at::matmul(g, y.mT()).sum_to_size(x.sizes()).reshape(self.sizes()).to(self.scalar_type()), self.device());
  if (mask[1]) grad_other = to_npu(at::matmul(x.mT(), g).sum_to_size(y.sizes()).reshape(other.sizes()).to(other.scalar_type()), self.device());
  return {grad_self, grad_other};
}

// Gradient of binary_cross_entropy_with_logits: with p the weight of positives, x the logits and t the targets it is
// weight * ((1 - t + p t) sigmoid(x) - p t) * grad, over the number of elements where the loss is a mean.
at::Tensor npu_binary_cross_entropy_with_logits_backward(const at::Tensor &grad, const at::Tensor &self,
                                                         const at::Tensor &target, const c10::optional<at::Tensor> &weight,
                                                         const c10::optional<at::Tensor> &pos_weight, int64_t reduction) {
  Scope scope("npu::npu_binary_cross_entropy_with_logits_backward");
  const at::Tensor x = emulated::as_cpu(self), t = emulated::as_cpu(target);
  const auto p = as_cpu(pos_weight), w = as_cpu(weight);
  at::Tensor result = p ? (1 - t + *p * t) * x.sigmoid() - *p * t : x.sigmoid() - t;
  result = result * emulated::as_cpu(grad);
  if (w) result = result * *w;
  if (reduction == at::Reduction::Mean) result = result / x.numel();
  return to_npu(result, self.device());
}

// softmax(scale x + atten_mask + relative_pos_bias) of windows, x being (B, W, N, S1, S2) or (B * W, N, S1, S2), the mask (W, S1,
// S2) with axes of length 1, and the bias (N, S1, S2) likewise, all of one dtype. From the documentation of CANN's operator
// aclnnMaskedSoftmaxWithRelPosBias.
at::Tensor npu_masked_softmax_with_rel_pos_bias(const at::Tensor &x, const c10::optional<at::Tensor> &atten_mask,
                                                const at::Tensor &relative_pos_bias, double scale_value, int64_t precision) {
  Scope scope("npu::npu_masked_softmax_with_rel_pos_bias");
  const char *name = "npu_masked_softmax_with_rel_pos_bias: ";
  const auto type = x.scalar_type();
  const auto mask = as_cpu(atten_mask);
  TORCH_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, name, "dtype ", type,
              "; the operator takes float16, bfloat16 and float32");
  TORCH_CHECK(relative_pos_bias.scalar_type() == type && (!mask || mask->scalar_type() == type), name,
              "x, atten_mask and relative_pos_bias differ in dtype");
  TORCH_CHECK(precision == 0, name, "inner_precision_mode ", precision, "; only 0 is allowed");
  TORCH_CHECK(std::isfinite(scale_value), name, "scale_value is not finite");
  TORCH_CHECK(x.dim() == 4 || x.dim() == 5, name, "x has ", x.dim(), " dimensions");
  const int64_t heads = x.size(-3), rows = x.size(-2), columns = x.size(-1);
  const int64_t windows = mask ? mask->numel() / (rows * columns) : x.dim() == 5 ? x.size(1) : x.size(0);
  TORCH_CHECK(relative_pos_bias.numel() == heads * rows * columns && relative_pos_bias.size(-1) == columns, name,
              "relative_pos_bias has shape ", relative_pos_bias.sizes(), ", x ", x.sizes());
  TORCH_CHECK((!mask || (mask->size(-1) == columns && mask->numel() == windows * rows * columns)) &&
                  (x.dim() == 5 ? x.size(1) == windows : x.size(0) % windows == 0),
              name, "atten_mask does not fit x of shape ", x.sizes());
  at::Tensor scores = wide(x).to(at::kFloat).reshape({-1, windows, heads, rows, columns}) * scale_value;
  if (mask) scores += mask->to(at::kFloat).reshape({1, windows, 1, rows, columns});
  scores += emulated::as_cpu(relative_pos_bias).to(at::kFloat).reshape({1, 1, heads, rows, columns});
  return to_npu(scores.softmax(-1).reshape(x.sizes()).to(type), x.device());
}

// self repeated to a larger shape, in memory of its own.
at::Tensor npu_broadcast(const at::Tensor &self, at::IntArrayRef shape) {
  Scope scope("npu::npu_broadcast");
  return to_npu(emulated::as_cpu(self).expand(shape).contiguous(), self.device());
}

// Mixed precision: divides the gradients by the scale, and notes whether one of them is not finite.
void amp_unscale(at::TensorList gradients, at::Tensor &found_inf, const at::Tensor &inverse_scale) {
  Scope scope("aten::_amp_foreach_non_finite_check_and_unscale_");
  const at::Tensor factor = emulated::as_cpu(inverse_scale);
  at::Tensor found = emulated::as_cpu(found_inf);
  for (const at::Tensor &gradient : gradients) {
    at::Tensor values = emulated::as_cpu(gradient);
    if (!values.isfinite().all().item<bool>()) found.fill_(1);
    values.mul_(factor);
  }
}

// Mixed precision: a smaller scale after an overflow, a larger one after growth_interval steps without.
at::Tensor &amp_update_scale(at::Tensor &scale, at::Tensor &growth_tracker, const at::Tensor &found_inf,
                             double growth_factor, double backoff_factor, int64_t growth_interval) {
  Scope scope("aten::_amp_update_scale_");
  at::Tensor value = emulated::as_cpu(scale), steps = emulated::as_cpu(growth_tracker);
  if (emulated::as_cpu(found_inf).item<float>() > 0) {
    value.mul_(backoff_factor);
    steps.zero_();
  } else if (steps.item<int64_t>() + 1 == growth_interval) {
    value.mul_(growth_factor);
    steps.zero_();
  } else {
    steps.add_(1);
  }
  return scale;
}

}  // namespace

bool has_reference(const c10::OperatorName &name) { return kReferences.count(name.name) != 0; }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("matmul", &matmul);
  library.impl("matmul_backward", &matmul_backward);
  library.impl("_amp_foreach_non_finite_check_and_unscale_", &amp_unscale);
  library.impl("_amp_update_scale_", &amp_update_scale);
}

TORCH_LIBRARY_IMPL(npu, PrivateUse1, library) {
  library.impl("npu_binary_cross_entropy_with_logits_backward", &npu_binary_cross_entropy_with_logits_backward);
  library.impl("npu_broadcast", &npu_broadcast);
  library.impl("npu_masked_softmax_with_rel_pos_bias", &npu_masked_softmax_with_rel_pos_bias);
}

}  // namespace emulated
