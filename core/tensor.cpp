#include "core/tensor.h"

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/dry_run.h"

namespace shardtune {

Shape::Shape(std::span<const int64_t> extents) {
  if (extents.size() > kMaxDims)
    throw ArgumentError("Shape: at most 4 dimensions, found " + std::to_string(extents.size()));
  const auto numel = try_numel(extents);
  if (!numel)
    throw ArgumentError("Shape: negative extent or overflow");
  std::copy(extents.begin(), extents.end(), extents_.begin());
  ndim_ = static_cast<int>(extents.size());
  numel_ = *numel;
}

bool Shape::operator==(const Shape& other) const {
  return ndim_ == other.ndim_ && extents_ == other.extents_;
}

std::string Shape::to_string() const {
  std::string text = "[";
  for (int i = 0; i < ndim_; ++i)
    text += (i > 0 ? ", " : "") + std::to_string(extents_[i]);
  return text + "]";
}

void TensorView::throw_dtype(DType wanted) const {
  throw ArgumentError("tensor " + shape_.to_string() + ": expected " +
                      std::string(name_of(wanted)) + ", found " + std::string(name_of(dtype_)));
}

TensorView TensorView::reshaped(Shape shape) const {
  if (shape.numel() != numel())
    throw ArgumentError("reshape: " + shape_.to_string() + " does not hold the elements of " +
                        shape.to_string());
  return {data_, dtype_, shape};
}

TensorView TensorView::rows(int64_t begin, int64_t end) const {
  SHARDTUNE_ASSERT(shape_.ndim() >= 1 && begin >= 0 && begin <= end && end <= shape_[0]);
  std::array<int64_t, Shape::kMaxDims> extents{};
  for (int i = 0; i < shape_.ndim(); ++i)
    extents[i] = shape_[i];
  extents[0] = end - begin;
  const int64_t row_bytes = (shape_[0] == 0 ? 0 : numel() / shape_[0]) * size_of(dtype_);
  return {static_cast<std::byte*>(data_) + begin * row_bytes, dtype_,
          Shape(std::span<const int64_t>(extents.data(), shape_.ndim()))};
}

namespace {
constexpr int64_t kAlignment = 64;

// From this size on a buffer is pages of its own: given back, it leaves no hole in the heap, which
// would stay resident. Smaller ones are few per cent of a run and stay with the pool: freed and
// allocated again and again, aligned blocks make glibc's heap grow (its bug 14581, until 2.38).
constexpr int64_t kOwnPages = 1 << 16;
constexpr int64_t kPageBytes = 4096;
// Address space after such a buffer. Sizes are multiples of large powers of two (size_class):
// without it buffers of one size, which loops walk side by side, would meet in the same sets of the
// caches and the same banks of memory.
constexpr int64_t kGapBytes = 17 * kPageBytes;
// Every so many bytes of growth, and every so many buffers, pages between the heap's blocks go back
// too: oneDNN allocates scratch of its own there, aligned, whose holes would add up: by 1.4 MiB a
// layer of the 1.1B shape (2026-11-24). A trim takes about a millisecond, the buffers those of some
// eight layers.
constexpr int64_t kHeapTrimBytes = 16 << 20;
constexpr int64_t kHeapTrimBuffers = 512;

void* system_allocate(int64_t size) {
  if (size < kOwnPages)
    return std::aligned_alloc(kAlignment, static_cast<size_t>(size));
  // A dry run may ask for more than the machine has; it touches nothing.
  const int reserve = DryRun::current() != nullptr ? MAP_NORESERVE : 0;
  void* const pointer = mmap(nullptr, static_cast<size_t>(size + kGapBytes), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | reserve, -1, 0);
  return pointer == MAP_FAILED ? nullptr : pointer;
}

void system_free(void* pointer, int64_t size) noexcept {
  if (size < kOwnPages)
    std::free(pointer);
  else
    munmap(pointer, static_cast<size_t>(size + kGapBytes));
}

// Size classes an eighth apart, so that micro-batches of nearly equal length share buffers.
int64_t size_class(int64_t num_bytes) {
  if (num_bytes <= 4096)
    return round_up(std::max<int64_t>(num_bytes, 1), kAlignment);
  int64_t step = kAlignment;
  while (step * 16 < num_bytes)
    step *= 2;
  return round_up(num_bytes, step);
}
}  // namespace

struct BufferPool::State {
  std::mutex mutex;
  std::multimap<int64_t, void*> kept;
  int64_t in_use = 0;
  int64_t peak = 0;
  int64_t kept_bytes = 0;
  int64_t grown_since_trim = 0;
  int64_t buffers_since_trim = 0;
  std::unordered_map<const void*, int64_t> touched;  // bytes of every buffer, in use or kept
  int64_t resident = 0;
  int64_t peak_resident = 0;

  void touch(const void* pointer, int64_t num_bytes) {
    int64_t& bytes = touched[pointer];
    const int64_t now = std::max(bytes, round_up(std::max<int64_t>(num_bytes, 1), kPageBytes));
    resident += now - bytes;
    bytes = now;
    peak_resident = std::max(peak_resident, resident);
  }

  void free_buffer(void* pointer, int64_t size) noexcept {
    if (const auto found = touched.find(pointer); found != touched.end()) {
      resident -= found->second;
      touched.erase(found);
    }
    system_free(pointer, size);
  }

  void trim_heap_when_due() {
    ++buffers_since_trim;
    if (grown_since_trim < kHeapTrimBytes && buffers_since_trim < kHeapTrimBuffers)
      return;
    grown_since_trim = 0;
    buffers_since_trim = 0;
    malloc_trim(0);
  }

  void* take_kept(int64_t size) {
    const auto found = kept.find(size);
    if (found == kept.end())
      return nullptr;
    void* const pointer = found->second;
    kept.erase(found);
    kept_bytes -= size;
    return pointer;
  }

  // Frees kept buffers of at least `smallest` bytes, the largest first, until at most `bytes` are
  // kept.
  void shrink_to(int64_t bytes, int64_t smallest) {
    while (kept_bytes > bytes && !kept.empty() && std::prev(kept.end())->first >= smallest) {
      const auto largest = std::prev(kept.end());
      kept_bytes -= largest->first;
      free_buffer(largest->second, largest->first);
      kept.erase(largest);
    }
  }
};

BufferPool::BufferPool() : state_(std::make_unique<State>()) {}

BufferPool::~BufferPool() { trim(); }

BufferPool& BufferPool::process() {
  // Never destroyed: tensors of static lifetime may outlive main().
  static BufferPool* const pool = std::make_unique<BufferPool>().release();
  return *pool;
}

void* BufferPool::allocate(int64_t num_bytes) {
  const int64_t size = size_class(num_bytes);
  const std::lock_guard lock(state_->mutex);
  const int64_t in_use = state_->in_use + size;
  state_->trim_heap_when_due();
  void* pointer = state_->take_kept(size);
  if (pointer == nullptr) {
    state_->shrink_to(std::max(state_->peak - in_use, kAlwaysKeptBytes), kOwnPages);
    state_->grown_since_trim += size;
    pointer = system_allocate(size);
  }
  if (pointer == nullptr) {
    throw OutOfMemoryError("allocation of " + std::to_string(size) +
                           " bytes failed. Lower micro_batch_size or max_length, or set "
                           "training.gradient_checkpointing: true.");
  }
  state_->in_use = in_use;
  state_->peak = std::max(state_->peak, in_use);
  state_->touch(pointer, num_bytes);
  return pointer;
}

void BufferPool::release(void* pointer, int64_t num_bytes) noexcept {
  const int64_t size = size_class(num_bytes);
  const std::lock_guard lock(state_->mutex);
  state_->in_use -= size;
  try {
    state_->kept.emplace(size, pointer);
    state_->kept_bytes += size;
  } catch (const std::bad_alloc&) {
    state_->free_buffer(pointer, size);
  }
}

void BufferPool::trim() noexcept {
  const std::lock_guard lock(state_->mutex);
  state_->shrink_to(0, 0);
}

int64_t BufferPool::bytes_in_use() const {
  const std::lock_guard lock(state_->mutex);
  return state_->in_use;
}

int64_t BufferPool::peak_bytes_in_use() const {
  const std::lock_guard lock(state_->mutex);
  return state_->peak;
}

int64_t BufferPool::bytes_kept() const {
  const std::lock_guard lock(state_->mutex);
  return state_->kept_bytes;
}

int64_t BufferPool::peak_resident_bytes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->peak_resident;
}

int64_t BufferPool::resident_bytes() const {
  const std::lock_guard lock(state_->mutex);
  return state_->resident;
}

namespace {
void* allocate_buffer(int64_t num_bytes) {
  DryRun* const dry_run = DryRun::current();
  return dry_run != nullptr ? dry_run->allocate(num_bytes)
                            : BufferPool::process().allocate(num_bytes);
}

void release_buffer(void* pointer, int64_t num_bytes) noexcept {
  DryRun* const dry_run = DryRun::current();
  if (dry_run == nullptr || !dry_run->release(pointer, num_bytes))
    BufferPool::process().release(pointer, num_bytes);
}
}  // namespace

Tensor::Tensor(Shape shape, DType dtype)
    : view_(allocate_buffer(checked_mul(shape.numel(), size_of(dtype))), dtype, shape) {}

Tensor Tensor::zeros(Shape shape, DType dtype) {
  Tensor tensor(shape, dtype);
  if (DryRun::current() == nullptr)
    std::memset(tensor.view_.raw(), 0, static_cast<size_t>(tensor.num_bytes()));
  return tensor;
}

Tensor Tensor::from(std::span<const float> values, Shape shape) {
  SHARDTUNE_ASSERT(static_cast<int64_t>(values.size()) == shape.numel());
  Tensor tensor(shape, DType::kFloat32);
  std::copy(values.begin(), values.end(), tensor.data<float>());
  return tensor;
}

Tensor::~Tensor() {
  if (!view_.empty())
    release_buffer(view_.raw(), view_.num_bytes());
}

Tensor::Tensor(Tensor&& other) noexcept : view_(std::exchange(other.view_, TensorView())) {}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(view_, other.view_);
  return *this;
}

Tensor Tensor::clone() const {
  Tensor copy(shape(), dtype());
  if (DryRun::current() == nullptr)
    std::memcpy(copy.view_.raw(), view_.raw(), static_cast<size_t>(num_bytes()));
  return copy;
}

}  // namespace shardtune
