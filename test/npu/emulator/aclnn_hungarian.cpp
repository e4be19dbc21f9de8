// Assignment of rows to columns at the least total cost, as mx_driving asks its custom operator for it.
//
// Shortest augmenting paths (Crouse 2016, https://doi.org/10.1109/TAES.2016.140952) in float32, with the largest float32
// for infinity, as in the kernel's source, which the package holds. There must not be more rows than columns. If the caller
// has transposed the matrix, the pairs are sorted by column, and the two outputs are swapped.
#include <algorithm>
#include <limits>
#include <numeric>

#include "emulator.h"
#include "operands.h"

namespace {

using emulator::describe;
using emulator::fail;

// The column of each row.
std::vector<int32_t> assign(const float *costs, int32_t rows, int32_t columns) {
  const float largest = std::numeric_limits<float>::max();
  std::vector<float> row_dual(rows, 0.f), column_dual(columns, 0.f);
  std::vector<int32_t> column_of(rows, -1), row_of(columns, -1);
  for (int32_t first = 0; first < rows; ++first) {
    std::vector<float> shortest(columns, largest);
    std::vector<int32_t> path(columns, -1);
    std::vector<bool> row_done(rows, false), column_done(columns, false);
    float lowest = 0;
    int32_t row = first, sink = -1;
    while (sink == -1) {
      row_done[row] = true;
      int32_t next = -1;
      for (int32_t column = 0; column < columns; ++column) {
        if (column_done[column]) continue;
        const float length = costs[row * columns + column] - column_dual[column] + (lowest - row_dual[row]);
        if (length < shortest[column]) {
          shortest[column] = length;
          path[column] = row;
        }
        if (next == -1 || shortest[column] < shortest[next]) next = column;
      }
      lowest = shortest[next];
      column_done[next] = true;
      if (row_of[next] == -1) {
        sink = next;
      } else {
        row = row_of[next];
      }
    }
    for (int32_t i = 0; i < rows; ++i) {
      if (row_done[i]) row_dual[i] += i == first ? lowest : lowest - shortest[column_of[i]];
    }
    for (int32_t column = 0; column < columns; ++column) {
      if (column_done[column]) column_dual[column] += shortest[column] - lowest;
    }
    for (int32_t column = sink, i = -1; i != first;) {
      i = path[column];
      row_of[column] = i;
      std::swap(column, column_of[i]);
    }
  }
  return column_of;
}

bool is(const aclTensor *tensor, aclDataType dtype, const std::vector<int64_t> &shape) {
  return tensor != nullptr && tensor->dtype == dtype && tensor->shape == shape && tensor->is_contiguous();
}

}  // namespace

extern "C" {

aclnnStatus aclnnHungarianGetWorkspaceSize(const aclTensor *costs, bool transposed, const aclTensor *row_indices,
                                           const aclTensor *column_indices, uint64_t *workspace_size,
                                           aclOpExecutor **executor) {
  const bool matrix = costs != nullptr && costs->shape.size() == 2 && costs->shape[0] > 0;
  if (!matrix || costs->shape[0] > costs->shape[1] || !is(costs, ACL_FLOAT, costs->shape) ||
      !is(row_indices, ACL_INT32, {costs->shape[0]}) || !is(column_indices, ACL_INT32, {costs->shape[0]})) {
    return fail(ACL_ERROR_INVALID_PARAM, "Hungarian: costs %s, rows %s, columns %s", describe(costs).c_str(),
                describe(row_indices).c_str(), describe(column_indices).c_str());
  }
  const auto run = [transposed, costs = *costs, row_indices = *row_indices, column_indices = *column_indices] {
    const std::vector<int32_t> columns =
        assign(costs.data<float>(), static_cast<int32_t>(costs.shape[0]), static_cast<int32_t>(costs.shape[1]));
    std::vector<int32_t> order(columns.size());
    std::iota(order.begin(), order.end(), 0);
    if (transposed) {
      std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return columns[a] < columns[b]; });
    }
    for (size_t i = 0; i < order.size(); ++i) {
      row_indices.data<int32_t>()[i] = transposed ? columns[order[i]] : order[i];
      column_indices.data<int32_t>()[i] = transposed ? order[i] : columns[order[i]];
    }
    return ACL_SUCCESS;
  };
  return emulator::prepare("aclnnHungarian", run, workspace_size, executor);
}

aclnnStatus aclnnHungarian(void *, uint64_t, aclOpExecutor *executor, aclrtStream stream) {
  return emulator::execute(executor, stream);
}

}  // extern "C"
