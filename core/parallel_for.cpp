#include "core/parallel_for.h"

#include <omp.h>

#include <algorithm>
#include <exception>

#include "core/dry_run.h"

namespace shardtune {

namespace {
// Keeps the first exception of a parallel region: none may leave an OpenMP thread.
class ExceptionSlot {
 public:
  template <typename Body>
  void run(const Body& body) noexcept {
    try {
      body();
    } catch (...) {
#pragma omp critical(shardtune_exception_slot)
      if (!exception_)
        exception_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (exception_)
      std::rethrow_exception(exception_);
  }

 private:
  std::exception_ptr exception_;
};
}  // namespace

int num_threads() { return omp_get_max_threads(); }

void set_num_threads(int n) { omp_set_num_threads(std::max(n, 1)); }

void parallel_for(int64_t count, int64_t grain,
                  const std::function<void(int64_t begin, int64_t end)>& body) {
  if (count <= 0 || DryRun::current() != nullptr)
    return;
  const int64_t ranges =
      std::min<int64_t>(num_threads(), std::max<int64_t>(count / std::max<int64_t>(grain, 1), 1));
  if (ranges == 1 || omp_in_parallel()) {
    body(0, count);
    return;
  }
  ExceptionSlot slot;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast <int>(ranges))
  for (int64_t r = 0; r < ranges; ++r)
    slot.run([&] { body(count * r / ranges, count * (r + 1) / ranges); });
  slot.rethrow();
}

void parallel_tasks(int64_t count, const std::function<void(int64_t i)>& body) {
  if (DryRun::current() != nullptr)
    return;
  if (omp_in_parallel() || num_threads() == 1 || count == 1) {
    for (int64_t i = 0; i < count; ++i)
      body(i);
    return;
  }
  ExceptionSlot slot;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i)
    slot.run([&] { body(i); });
  slot.rethrow();
}

}  // namespace shardtune
