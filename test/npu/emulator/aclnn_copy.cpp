// Copies between tensors of any strides and dtypes: what torch_npu calls for contiguous(), copy_() and conversions.
#include <cmath>
#include <cstring>

#include "emulator.h"
#include "operands.h"

namespace {

struct Bfloat16 {
  uint16_t bits = 0;

  Bfloat16() = default;
  explicit Bfloat16(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof(wide));
    // Rounds to nearest, ties to even; a NaN stays one.
    bits = std::isnan(value) ? 0x7FC0 : static_cast<uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
  }
  explicit operator float() const {
    uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    return value;
  }
};

// Conversions by way of float for the two 16-bit formats, directly for all others.
template <typename To, typename From>
To convert(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<From, Bfloat16>) {
    return convert<To>(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, Bfloat16>) {
    return Bfloat16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != From(0);
  } else if constexpr (std::is_same_v<To, uint8_t> && std::is_floating_point_v<From>) {
    return static_cast<uint8_t>(static_cast<int64_t>(value));  // as torch: wraps instead of being undefined
  } else {
    return static_cast<To>(value);
  }
}

// Calls visit(position in to, position in from) for each element; from's shape broadcasts to to's.
template <typename Visit>
void for_each(const aclTensor &to, const aclTensor &from, Visit visit) {
  const size_t rank = to.shape.size(), lead = rank - from.shape.size();
  std::vector<int64_t> from_strides(rank, 0), index(rank, 0);
  for (size_t i = lead; i < rank; ++i) from_strides[i] = from.shape[i - lead] == 1 ? 0 : from.strides[i - lead];
  int64_t at = 0, source = 0;
  for (int64_t left = to.numel(); left > 0; --left) {
    visit(at, source);
    for (size_t i = rank; i-- > 0;) {
      at += to.strides[i];
      source += from_strides[i];
      if (++index[i] < to.shape[i]) break;
      at -= to.strides[i] * to.shape[i];
      source -= from_strides[i] * to.shape[i];
      index[i] = 0;
    }
  }
}

template <typename To, typename From>
void copy_elements(const aclTensor &to, const aclTensor &from) {
  To *target = to.data<To>();
  const From *source = from.data<From>();
  for_each(to, from, [&](int64_t at, int64_t read) { target[at] = convert<To>(source[read]); });
}

template <typename To>
bool copy_from(const aclTensor &to, const aclTensor &from) {
  switch (from.dtype) {
    case ACL_FLOAT: copy_elements<To, float>(to, from); return true;
    case ACL_FLOAT16: copy_elements<To, _Float16>(to, from); return true;
    case ACL_BF16: copy_elements<To, Bfloat16>(to, from); return true;
    case ACL_DOUBLE: copy_elements<To, double>(to, from); return true;
    case ACL_INT8: copy_elements<To, int8_t>(to, from); return true;
    case ACL_INT16: copy_elements<To, int16_t>(to, from); return true;
    case ACL_INT32: copy_elements<To, int32_t>(to, from); return true;
    case ACL_INT64: copy_elements<To, int64_t>(to, from); return true;
    case ACL_UINT8: copy_elements<To, uint8_t>(to, from); return true;
    case ACL_BOOL: copy_elements<To, bool>(to, from); return true;
    default: return false;
  }
}

bool is_known(aclDataType dtype) {
  switch (dtype) {
    case ACL_FLOAT: case ACL_FLOAT16: case ACL_BF16: case ACL_DOUBLE: case ACL_INT8: case ACL_INT16: case ACL_INT32:
    case ACL_INT64: case ACL_UINT8: case ACL_BOOL:
      return true;
    default:
      return false;
  }
}

bool broadcasts(const aclTensor &from, const aclTensor &to) {
  if (from.shape.size() > to.shape.size()) return false;
  const size_t lead = to.shape.size() - from.shape.size();
  for (size_t i = 0; i < from.shape.size(); ++i) {
    if (from.shape[i] != 1 && from.shape[i] != to.shape[i + lead]) return false;
  }
  return true;
}

}  // namespace

namespace emulator {

bool copy(const aclTensor &to, const aclTensor &from) {
  if (!broadcasts(from, to)) return false;
  switch (to.dtype) {
    case ACL_FLOAT: return copy_from<float>(to, from);
    case ACL_FLOAT16: return copy_from<_Float16>(to, from);
    case ACL_BF16: return copy_from<Bfloat16>(to, from);
    case ACL_DOUBLE: return copy_from<double>(to, from);
    case ACL_INT8: return copy_from<int8_t>(to, from);
    case ACL_INT16: return copy_from<int16_t>(to, from);
    case ACL_INT32: return copy_from<int32_t>(to, from);
    case ACL_INT64: return copy_from<int64_t>(to, from);
    case ACL_UINT8: return copy_from<uint8_t>(to, from);
    case ACL_BOOL: return copy_from<bool>(to, from);
    default: return false;
  }
}

}  // namespace emulator

namespace {

aclnnStatus prepare_copy(const char *name, const aclTensor *to, const aclTensor *from, uint64_t *workspace_size,
                         aclOpExecutor **executor) {
  if (!is_known(to->dtype) || !is_known(from->dtype) || !broadcasts(*from, *to)) {
    return emulator::fail(ACL_ERROR_INVALID_PARAM, "%s: %s into %s", name, emulator::describe(from).c_str(),
                          emulator::describe(to).c_str());
  }
  const auto run = [to = *to, from = *from]() -> aclnnStatus {
    return emulator::copy(to, from) ? ACL_SUCCESS : ACL_ERROR_INTERNAL_ERROR;
  };
  return emulator::prepare(name, run, workspace_size, executor);
}

}  // namespace

extern "C" {

aclnnStatus aclnnInplaceCopyGetWorkspaceSize(aclTensor *self, const aclTensor *source, uint64_t *workspace_size,
                                             aclOpExecutor **executor) {
  return prepare_copy("aclnnInplaceCopy", self, source, workspace_size, executor);
}

aclnnStatus aclnnInplaceCopy(void *, uint64_t, aclOpExecutor *executor, aclrtStream stream) {
  return emulator::execute(executor, stream);
}

aclnnStatus aclnnCastGetWorkspaceSize(const aclTensor *self, aclDataType, aclTensor *out, uint64_t *workspace_size,
                                      aclOpExecutor **executor) {
  return prepare_copy("aclnnCast", out, self, workspace_size, executor);
}

aclnnStatus aclnnCast(void *, uint64_t, aclOpExecutor *executor, aclrtStream stream) {
  return emulator::execute(executor, stream);
}

}  // extern "C"
