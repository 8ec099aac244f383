#include "kernels/column_groups.h"

#include <algorithm>
#include <array>
#include <string>

#include "core/parallel_for.h"
#include "kernels/checks.h"

namespace shardtune::kernels {

namespace {

constexpr int64_t kGrain = 16384;  // elements that are worth a thread
constexpr int64_t kLanes = 8;

template <typename Body>
void dispatch(DType dtype, const Body& body) {
  if (dtype == DType::kBFloat16)
    body(BFloat16{});
  else
    body(float{});
}

int64_t group_size(const char* op, const TensorView& wide, const TensorView& narrow) {
  check_float(op, "wide", wide);
  check_float(op, "narrow", narrow);
  const bool fits = wide.shape().ndim() == 2 && narrow.shape().ndim() == 2 &&
                    wide.dim(0) == narrow.dim(0) && narrow.dim(1) > 0 &&
                    wide.dim(1) % narrow.dim(1) == 0;
  if (!fits)
    fail_argument(op, "narrow", narrow,
                  "rows of groups of the columns of " + wide.shape().to_string());
  return wide.dim(1) / narrow.dim(1);
}

template <typename T>
float sum_of(const T* x, int64_t count) {
  float sum = 0.0f;
  if (count % kLanes != 0) {
    for (int64_t i = 0; i < count; ++i)
      sum += static_cast<float>(x[i]);
    return sum;
  }
  std::array<float, kLanes> lanes{};
  for (int64_t i = 0; i < count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane)
      lanes[static_cast<size_t>(lane)] += static_cast<float>(x[i + lane]);
  }
  for (const float lane : lanes)
    sum += lane;
  return sum;
}

template <typename Row>
void for_each_row(const TensorView& wide, const Row& row) {
  parallel_for(wide.dim(0), kGrain / std::max<int64_t>(wide.dim(1), 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t)
                   row(t);
               });
}

}  // namespace

void sum_column_groups(const TensorView& x, float scale, const TensorView& y) {
  const int64_t group = group_size("sum_column_groups", x, y);
  const int64_t count = y.dim(1);
  dispatch(x.dtype(), [&](auto from) {
    dispatch(y.dtype(), [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      for_each_row(x, [&](int64_t t) {
        const From* const values = x.data<const From>() + t * count * group;
        To* const sums = y.data<To>() + t * count;
        for (int64_t j = 0; j < count; ++j)
          sums[j] = To(scale * sum_of(values + j * group, group));
      });
    });
  });
}

void spread_column_groups(const TensorView& dy, float scale, const TensorView& dx,
                          Accumulate accumulate) {
  const int64_t group = group_size("spread_column_groups", dx, dy);
  const int64_t count = dy.dim(1);
  const bool adds = accumulate == Accumulate::kYes;
  dispatch(dy.dtype(), [&](auto from) {
    dispatch(dx.dtype(), [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      for_each_row(dx, [&](int64_t t) {
        const From* const values = dy.data<const From>() + t * count;
        To* const row = dx.data<To>() + t * count * group;
        for (int64_t j = 0; j < count; ++j) {
          const float value = scale * static_cast<float>(values[j]);
          for (int64_t i = j * group; i < (j + 1) * group; ++i)
            row[i] = To((adds ? static_cast<float>(row[i]) : 0.0f) + value);
        }
      });
    });
  });
}

}  // namespace shardtune::kernels
