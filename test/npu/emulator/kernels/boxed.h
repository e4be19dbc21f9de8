// What the kernels of this folder share.
#pragma once

#include <ATen/ATen.h>

#include <set>
#include <string>
#include <vector>

namespace emulated {

// A tensor of the emulated NPU as a CPU tensor of the same memory.
at::Tensor as_cpu(const at::Tensor &tensor);

// A CPU tensor's values in new memory of an NPU, with the same strides.
at::Tensor to_npu(const at::Tensor &tensor, c10::Device device);

// Whether reference.cpp has a kernel for an operator, because torch's CPU has none.
bool has_reference(const c10::OperatorName &name);

}  // namespace emulated
