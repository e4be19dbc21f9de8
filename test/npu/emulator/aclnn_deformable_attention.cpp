// Multi-scale deformable attention, forward and backward, as mx_driving asks its custom operators for it.
//
// Deformable DETR (https://arxiv.org/abs/2010.04159), equation 3: a query's output in one head is the sum over levels and
// points of weight x value, the value sampled bilinearly at (x * width - 0.5, y * height - 0.5), zero outside of the map.
#include <cmath>

#include "emulator.h"
#include "operands.h"

namespace {

using emulator::describe;
using emulator::fail;

struct Attention {
  aclTensor value, shapes, starts, locations, weights;

  int64_t batch() const { return value.shape[0]; }
  int64_t keys() const { return value.shape[1]; }
  int64_t heads() const { return value.shape[2]; }
  int64_t width() const { return value.shape[3]; }
  int64_t queries() const { return locations.shape[1]; }
  int64_t levels() const { return shapes.shape[0]; }
  int64_t points() const { return locations.shape[4]; }
};

using Shape = std::vector<int64_t>;

bool is(const aclTensor *tensor, aclDataType dtype, const Shape &shape) {
  return tensor != nullptr && tensor->dtype == dtype && tensor->shape == shape && tensor->is_contiguous();
}

// What the package's table of operators (aic-ascend910b-ops-info.json) and the formula ask of dtypes and shapes.
bool fits(const Attention &a) {
  if (a.value.shape.size() != 4 || a.locations.shape.size() != 6 || a.shapes.shape.size() != 2) return false;
  const Shape places = {a.batch(), a.queries(), a.heads(), a.levels(), a.points(), 2};
  return is(&a.value, ACL_FLOAT, a.value.shape) && is(&a.shapes, ACL_INT32, {a.levels(), 2}) &&
         is(&a.starts, ACL_INT32, {a.levels()}) && is(&a.locations, ACL_FLOAT, places) &&
         is(&a.weights, ACL_FLOAT, Shape(places.begin(), places.end() - 1));
}

std::string describe_all(const Attention &a) {
  return "value " + describe(&a.value) + ", shapes " + describe(&a.shapes) + ", starts " + describe(&a.starts) +
         ", locations " + describe(&a.locations) + ", weights " + describe(&a.weights);
}

// The levels' shapes are values on the device, so only the run can see them. A real NPU reads other memory here.
aclnnStatus check_levels(const Attention &a) {
  const int32_t *shapes = a.shapes.data<int32_t>(), *starts = a.starts.data<int32_t>();
  int64_t first = 0;
  for (int64_t level = 0; level < a.levels(); ++level) {
    const int64_t height = shapes[2 * level], width = shapes[2 * level + 1];
    if (height <= 0 || width <= 0 || starts[level] != first) {
      return fail(ACL_ERROR_INVALID_PARAM, "deformable attention: level %ld is %ld x %ld from key %d, expected from key %ld",
                  level, height, width, starts[level], first);
    }
    first += height * width;
  }
  if (first != a.keys()) {
    return fail(ACL_ERROR_INVALID_PARAM, "deformable attention: the levels hold %ld keys, value has %ld", first, a.keys());
  }
  return ACL_SUCCESS;
}

// One corner of a sample: its key, its share and what the share gains with x and y (in pixels).
struct Corner {
  int64_t key;
  float share, along_x, along_y;
};

// Corners that lie on the map; returns how many.
int corners(const int32_t *shape, int32_t start, float x, float y, Corner *found) {
  const int64_t height = shape[0], width = shape[1];
  const float column = x * width - 0.5f, row = y * height - 0.5f;
  const float left = std::floor(column), top = std::floor(row);
  int count = 0;
  for (int down = 0; down < 2; ++down) {
    for (int right = 0; right < 2; ++right) {
      const float c = left + right, r = top + down;
      if (!(c >= 0 && c < width && r >= 0 && r < height)) continue;
      const float in_x = right ? column - left : 1 - (column - left), in_y = down ? row - top : 1 - (row - top);
      found[count++] = {start + static_cast<int64_t>(r) * width + static_cast<int64_t>(c), in_x * in_y,
                        right ? in_y : -in_y, down ? in_x : -in_x};
    }
  }
  return count;
}

// Calls visit(batch, query, head, level, index of the point in weights) for every point.
template <typename Visit>
void for_each_point(const Attention &a, Visit visit) {
  int64_t point = 0;
  for (int64_t batch = 0; batch < a.batch(); ++batch) {
    for (int64_t query = 0; query < a.queries(); ++query) {
      for (int64_t head = 0; head < a.heads(); ++head) {
        for (int64_t level = 0; level < a.levels(); ++level) {
          for (int64_t i = 0; i < a.points(); ++i) visit(batch, query, head, level, point++);
        }
      }
    }
  }
}

aclnnStatus forward(const Attention &a, const aclTensor &out) {
  if (aclnnStatus status = check_levels(a)) return status;
  float *result = out.data<float>();
  std::fill(result, result + out.numel(), 0.f);
  for_each_point(a, [&](int64_t batch, int64_t query, int64_t head, int64_t level, int64_t point) {
    const float *place = a.locations.data<float>() + 2 * point;
    Corner found[4];
    const int count = corners(a.shapes.data<int32_t>() + 2 * level, a.starts.data<int32_t>()[level], place[0], place[1], found);
    float *to = result + ((batch * a.queries() + query) * a.heads() + head) * a.width();
    for (int i = 0; i < count; ++i) {
      const float *from = a.value.data<float>() + ((batch * a.keys() + found[i].key) * a.heads() + head) * a.width();
      const float share = a.weights.data<float>()[point] * found[i].share;
      for (int64_t d = 0; d < a.width(); ++d) to[d] += share * from[d];
    }
  });
  return ACL_SUCCESS;
}

// grad_value is added to, as the real operator does: its caller has set it to zero. The other two are written.
aclnnStatus backward(const Attention &a, const aclTensor &grad, const aclTensor &grad_value,
                     const aclTensor &grad_locations, const aclTensor &grad_weights) {
  if (aclnnStatus status = check_levels(a)) return status;
  for_each_point(a, [&](int64_t batch, int64_t query, int64_t head, int64_t level, int64_t point) {
    const int32_t *shape = a.shapes.data<int32_t>() + 2 * level;
    const float *place = a.locations.data<float>() + 2 * point;
    const float weight = a.weights.data<float>()[point];
    Corner found[4];
    const int count = corners(shape, a.starts.data<int32_t>()[level], place[0], place[1], found);
    const float *g = grad.data<float>() + ((batch * a.queries() + query) * a.heads() + head) * a.width();
    float by_weight = 0, by_x = 0, by_y = 0;
    for (int i = 0; i < count; ++i) {
      const int64_t at = ((batch * a.keys() + found[i].key) * a.heads() + head) * a.width();
      const float *from = a.value.data<float>() + at;
      float *to = grad_value.data<float>() + at;
      float product = 0;
      for (int64_t d = 0; d < a.width(); ++d) {
        product += g[d] * from[d];
        to[d] += weight * found[i].share * g[d];
      }
      by_weight += product * found[i].share;
      by_x += product * found[i].along_x;
      by_y += product * found[i].along_y;
    }
    grad_weights.data<float>()[point] = by_weight;
    grad_locations.data<float>()[2 * point] = weight * by_x * shape[1];
    grad_locations.data<float>()[2 * point + 1] = weight * by_y * shape[0];
  });
  return ACL_SUCCESS;
}

}  // namespace

extern "C" {

aclnnStatus aclnnMultiScaleDeformableAttnGetWorkspaceSize(const aclTensor *value, const aclTensor *shapes,
                                                          const aclTensor *starts, const aclTensor *locations,
                                                          const aclTensor *weights, const aclTensor *out,
                                                          uint64_t *workspace_size, aclOpExecutor **executor) {
  const Attention a{*value, *shapes, *starts, *locations, *weights};
  if (!fits(a) || !is(out, ACL_FLOAT, {a.batch(), a.queries(), a.heads() * a.width()})) {
    return fail(ACL_ERROR_INVALID_PARAM, "MultiScaleDeformableAttn: %s, output %s", describe_all(a).c_str(),
                describe(out).c_str());
  }
  return emulator::prepare("aclnnMultiScaleDeformableAttn", [a, out = *out] { return forward(a, out); }, workspace_size,
                           executor);
}

aclnnStatus aclnnMultiScaleDeformableAttn(void *, uint64_t, aclOpExecutor *executor, aclrtStream stream) {
  return emulator::execute(executor, stream);
}

aclnnStatus aclnnMultiScaleDeformableAttnGradGetWorkspaceSize(
    const aclTensor *value, const aclTensor *shapes, const aclTensor *starts, const aclTensor *locations,
    const aclTensor *weights, const aclTensor *grad, const aclTensor *grad_value, const aclTensor *grad_locations,
    const aclTensor *grad_weights, uint64_t *workspace_size, aclOpExecutor **executor) {
  const Attention a{*value, *shapes, *starts, *locations, *weights};
  if (!fits(a) || !is(grad, ACL_FLOAT, {a.batch(), a.queries(), a.heads() * a.width()}) ||
      !is(grad_value, ACL_FLOAT, a.value.shape) || !is(grad_locations, ACL_FLOAT, a.locations.shape) ||
      !is(grad_weights, ACL_FLOAT, a.weights.shape)) {
    return fail(ACL_ERROR_INVALID_PARAM, "MultiScaleDeformableAttnGrad: %s, gradient %s", describe_all(a).c_str(),
                describe(grad).c_str());
  }
  const auto run = [a, grad = *grad, grad_value = *grad_value, grad_locations = *grad_locations,
                    grad_weights = *grad_weights] {
    return backward(a, grad, grad_value, grad_locations, grad_weights);
  };
  return emulator::prepare("aclnnMultiScaleDeformableAttnGrad", run, workspace_size, executor);
}

aclnnStatus aclnnMultiScaleDeformableAttnGrad(void *, uint64_t, aclOpExecutor *executor, aclrtStream stream) {
  return emulator::execute(executor, stream);
}

}  // extern "C"
