// Sums, products, largest and smallest over the ranks, in the order of the ranks.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "hccl_group.h"

namespace emulator {

// A signed sum or product that does not fit wraps around, which C++ defines for unsigned types only. Those narrower
// than int are widened to unsigned int first: otherwise to int, which the product of two uint16 does not fit.
template <typename T, bool = std::is_integral<T>::value>
struct Arithmetic {
  using type = T;
};
template <typename T>
struct Arithmetic<T, true> {
  using type = std::conditional_t<(sizeof(T) < sizeof(unsigned)), unsigned, std::make_unsigned_t<T>>;
};

template <typename T>
bool is_nan(T value) {
  return value != value;
}

// One step of a reduction, rounded to T as a reduction in memory rounds. A NaN stays one.
template <HcclReduceOp op, typename T>
T combine(T left, T right) {
  using A = typename Arithmetic<T>::type;
  if constexpr (op == HCCL_REDUCE_SUM) return static_cast<T>(static_cast<A>(left) + static_cast<A>(right));
  if constexpr (op == HCCL_REDUCE_PROD) return static_cast<T>(static_cast<A>(left) * static_cast<A>(right));
  if constexpr (op == HCCL_REDUCE_MAX) return is_nan(left) || left > right ? left : right;
  if constexpr (op == HCCL_REDUCE_MIN) return is_nan(left) || left < right ? left : right;
}

template <HcclReduceOp op, typename T>
void reduce_as(const Group &group, uint64_t offset, uint64_t count, char *out) {
  T *const total = reinterpret_cast<T *>(out);
  const T *const first = reinterpret_cast<const T *>(group.stage(0) + offset);
  for (uint64_t i = 0; i < count; ++i) total[i] = first[i];
  for (uint32_t rank = 1; rank < group.ranks(); ++rank) {
    const T *const next = reinterpret_cast<const T *>(group.stage(rank) + offset);
    for (uint64_t i = 0; i < count; ++i) total[i] = combine<op, T>(total[i], next[i]);
  }
}

template <typename T>
void reduce_of(const Group &group, HcclReduceOp op, uint64_t offset, uint64_t count, char *out) {
  switch (op) {
    case HCCL_REDUCE_SUM: return reduce_as<HCCL_REDUCE_SUM, T>(group, offset, count, out);
    case HCCL_REDUCE_PROD: return reduce_as<HCCL_REDUCE_PROD, T>(group, offset, count, out);
    case HCCL_REDUCE_MAX: return reduce_as<HCCL_REDUCE_MAX, T>(group, offset, count, out);
    case HCCL_REDUCE_MIN: return reduce_as<HCCL_REDUCE_MIN, T>(group, offset, count, out);
    default: throw Failure(HCCL_E_PARA, "HCCL has no reduction " + std::to_string(static_cast<int>(op)));
  }
}

// Reduces `count` elements that begin `offset` bytes into every rank's stage. The types are those that torch_npu lets
// HCCL reduce; the others have no reduction on the device.
inline void reduce(const Group &group, HcclDataType type, HcclReduceOp op, uint64_t offset, uint64_t count, char *out) {
  switch (type) {
    case HCCL_DATA_TYPE_INT8: return reduce_of<int8_t>(group, op, offset, count, out);
    case HCCL_DATA_TYPE_INT16: return reduce_of<int16_t>(group, op, offset, count, out);
    case HCCL_DATA_TYPE_INT32: return reduce_of<int32_t>(group, op, offset, count, out);
    case HCCL_DATA_TYPE_INT64: return reduce_of<int64_t>(group, op, offset, count, out);
    case HCCL_DATA_TYPE_FP32: return reduce_of<float>(group, op, offset, count, out);
    case HCCL_DATA_TYPE_FP16: return reduce_of<c10::Half>(group, op, offset, count, out);
    case HCCL_DATA_TYPE_BFP16: return reduce_of<c10::BFloat16>(group, op, offset, count, out);
    default: throw Failure(HCCL_E_NOT_SUPPORT, std::string("HCCL does not reduce ") + type_name(type));
  }
}

}  // namespace emulator
