#include "core/dry_run.h"

#include <algorithm>

#include "core/error.h"
#include "core/parallel_for.h"

namespace shardtune {

namespace {
// Of a thread, as its stack is: a walk and a run may go on side by side.
thread_local DryRun* current_dry_run = nullptr;
thread_local Purpose current_purpose = Purpose::kActivations;
}  // namespace

PurposeScope::PurposeScope(Purpose purpose) : before_(current_purpose) {
  current_purpose = purpose;
}

PurposeScope::~PurposeScope() { current_purpose = before_; }

DryRun::DryRun() {
  if (current_dry_run != nullptr)
    throw ArgumentError("DryRun: expected one at a time in a thread");
  current_dry_run = this;
}

DryRun::~DryRun() { current_dry_run = nullptr; }

DryRun* DryRun::current() { return current_dry_run; }

void* DryRun::allocate(int64_t num_bytes) {
  void* const pointer = pool_.allocate(num_bytes);
  purposes_[pointer] = current_purpose;
  in_use_[static_cast<size_t>(current_purpose)] += num_bytes;
  note_peak();
  return pointer;
}

void DryRun::note_peak() noexcept {
  const int64_t now = bytes_now();
  if (now <= peak_)
    return;
  peak_ = now;
  at_peak_ = in_use_;
  beside_at_peak_ = beside_;
}

void DryRun::hold_beside_pool(int64_t num_bytes) noexcept {
  beside_ += num_bytes;
  note_peak();
}

bool DryRun::release(void* pointer, int64_t num_bytes) noexcept {
  const auto found = purposes_.find(pointer);
  if (found == purposes_.end())
    return false;
  in_use_[static_cast<size_t>(found->second)] -= num_bytes;
  purposes_.erase(found);
  pool_.release(pointer, num_bytes);
  return true;
}

void count_task_scratch(int64_t num_tasks, int64_t num_bytes, int64_t more_bytes) {
  if (DryRun::current() == nullptr)
    return;
  std::vector<Tensor> held;
  for (int64_t i = 0; i < std::min<int64_t>(num_tasks, num_threads()); ++i) {
    for (const int64_t bytes : {num_bytes, more_bytes}) {
      if (bytes > 0)
        held.emplace_back(Shape{bytes}, DType::kUInt8);
    }
  }
}

}  // namespace shardtune
