// The few operators that torch_npu still asks for by name on this recipe's path.
#include <map>
#include <string>

#include "emulator.h"
#include "operands.h"

namespace {

using Tensors = std::vector<aclTensor>;
using Kernel = bool (*)(const Tensors &inputs, const Tensors &outputs);

// Inputs: the shape, one number. Output: a tensor full of it.
bool fill(const Tensors &inputs, const Tensors &outputs) {
  return inputs.size() == 2 && outputs.size() == 1 && emulator::copy(outputs[0], inputs[1]);
}

// Inputs: a tensor, how many elements to put before and behind it in each dimension, one number. Output: the tensor
// surrounded by that number.
bool pad(const Tensors &inputs, const Tensors &outputs) {
  if (inputs.size() != 3 || outputs.size() != 1) return false;
  const aclTensor &input = inputs[0], &margins = inputs[1], &output = outputs[0];
  const size_t rank = input.shape.size();
  if (margins.numel() != static_cast<int64_t>(2 * rank) || output.shape.size() != rank) return false;
  std::vector<int64_t> margin(2 * rank);
  if (!emulator::copy({{margins.numel()}, {1}, 0, ACL_INT64, margin.data()}, {{margins.numel()}, {1}, margins.offset, margins.dtype, margins.storage})) {
    return false;
  }
  aclTensor inner = output;
  inner.shape = input.shape;
  for (size_t i = 0; i < rank; ++i) {
    if (margin[2 * i] < 0 || margin[2 * i + 1] < 0) return false;
    if (margin[2 * i] + input.shape[i] + margin[2 * i + 1] != output.shape[i]) return false;
    inner.offset += margin[2 * i] * output.strides[i];
  }
  return emulator::copy(output, inputs[2]) && emulator::copy(inner, input);
}

const std::map<std::string, Kernel> kKernels = {{"Fill", fill}, {"PadV3", pad}};

}  // namespace

namespace emulator {

aclError run_named(const char *name, const Tensors &inputs, const Tensors &outputs) {
  auto found = kKernels.find(name);
  if (found == kKernels.end()) {
    return fail(ACL_ERROR_OP_NOT_FOUND, "operator %s has no reference kernel (test/npu)", name);
  }
  count(name);
  if (!found->second(inputs, outputs)) {
    std::string operands;
    for (const aclTensor &tensor : inputs) operands += describe(&tensor) + ", ";
    for (const aclTensor &tensor : outputs) operands += "into " + describe(&tensor);
    return fail(ACL_ERROR_INVALID_PARAM, "operator %s refuses %s", name, operands.c_str());
  }
  return ACL_SUCCESS;
}

}  // namespace emulator
