// What operators of the aclnn interface get: CANN ships the names of these types, not what is in them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "acl/acl.h"

using aclnnStatus = int32_t;

struct aclTensor {
  std::vector<int64_t> shape, strides;
  int64_t offset;  // in elements
  aclDataType dtype;
  void *storage;

  int64_t numel() const;
  bool is_contiguous() const;
  template <typename T>
  T *data() const {
    return static_cast<T *>(storage) + offset;
  }
};

struct aclScalar {
  aclDataType dtype;
  char value[16];
};

template <typename T>
struct aclArray {
  std::vector<T> values;
};
struct aclIntArray : aclArray<int64_t> {};
struct aclFloatArray : aclArray<float> {};
struct aclBoolArray : aclArray<bool> {};
struct aclTensorList : aclArray<const aclTensor *> {};
struct aclScalarList : aclArray<const aclScalar *> {};

// An operator between its two calls: what it will do, or why it refuses.
struct aclOpExecutor {
  std::string name;
  std::function<aclnnStatus()> run;
};

namespace emulator {

// "float32 [2, 3]".
std::string describe(const aclTensor *tensor);

// First half of an operator: remembers what to do; it needs no workspace.
aclnnStatus prepare(const char *name, std::function<aclnnStatus()> run, uint64_t *workspace_size, aclOpExecutor **executor);

// Second half: does it, and counts it.
aclnnStatus execute(aclOpExecutor *executor, aclrtStream stream);

// Copies one tensor into another of any strides and dtype, to whose shape its own broadcasts; false if it cannot.
bool copy(const aclTensor &to, const aclTensor &from);

// Runs an operator of the older interface, which has names instead of functions.
aclError run_named(const char *name, const std::vector<aclTensor> &inputs, const std::vector<aclTensor> &outputs);

}  // namespace emulator
