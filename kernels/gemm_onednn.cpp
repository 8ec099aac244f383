#include "kernels/gemm_onednn.h"

#include <omp.h>

#include <bit>
#include <dnnl.hpp>
#include <list>
#include <mutex>
#include <string>
#include <unordered_map>

#include "core/tensor.h"
#include "kernels/dispatch_limit.h"
#include "kernels/gemm_int8.h"
#include "kernels/gemm_int8_tiles.h"

namespace shardtune::kernels {

namespace {
using dnnl::memory;

// oneDNN asks OpenMP for the thread count both when it plans a primitive and when it runs one.
class SingleThreadScope {
 public:
  SingleThreadScope() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SingleThreadScope() { omp_set_num_threads(before_); }
  SingleThreadScope(const SingleThreadScope&) = delete;
  SingleThreadScope& operator=(const SingleThreadScope&) = delete;

 private:
  int before_;
};

memory::data_type to_dnnl(DType dtype) {
  return dtype == DType::kFloat32 ? memory::data_type::f32 : memory::data_type::bf16;
}

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

struct Product {
  dnnl::matmul primitive;
  memory::desc a, b, c, scratchpad;
};

Product make_product(const ProductSpec& spec) {
  const auto input = to_dnnl(spec.input_dtype);
  const memory::desc a({spec.m, spec.k}, input, {spec.a_row_stride, spec.a_column_stride});
  const memory::desc b({spec.k, spec.n}, input, {spec.b_row_stride, spec.b_column_stride});
  const memory::desc c({spec.m, spec.n}, to_dnnl(spec.output_dtype), {spec.c_row_stride, 1});
  dnnl::primitive_attr attributes;
  // Scratchpads come from us: oneDNN's own belong to the thread that made the primitive.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (spec.scale != 1.0f)
    attributes.set_output_scales(0, {spec.scale});
  if (spec.accumulate == Accumulate::kYes) {
    dnnl::post_ops post_ops;
    post_ops.append_sum(1.0f);
    attributes.set_post_ops(post_ops);
  }
  const SingleThreadScope single_thread;
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes,
                                                 cpu_engine());
  return {dnnl::matmul(description), a, b, c, description.scratchpad_desc()};
}

struct SpecHash {
  size_t operator()(const ProductSpec& spec) const {
    uint64_t hash = 0;
    const auto mix = [&hash](int64_t value) {
      hash = (hash ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15ull;
      hash ^= hash >> 29;
    };
    for (const int64_t value : {spec.m, spec.n, spec.k, spec.a_row_stride, spec.a_column_stride,
                                spec.b_row_stride, spec.b_column_stride, spec.c_row_stride})
      mix(value);
    mix(static_cast<int64_t>(spec.input_dtype) * 16 + static_cast<int64_t>(spec.output_dtype) * 2 +
        static_cast<int64_t>(spec.accumulate));
    mix(std::bit_cast<int32_t>(spec.scale));
    return static_cast<size_t>(hash);
  }
};

// The primitives used last: some times those of a step. Bounded: micro-batch lengths vary, and a
// primitive holds 20 to 90 KB of code. oneDNN's own cache, of 1,024, would keep them all the same.
class ProductCache {
 public:
  static constexpr size_t kCapacity = 128;

  ProductCache() { dnnl::set_primitive_cache_capacity(0); }

  std::shared_ptr<const Product> get(const ProductSpec& spec) {
    {
      const std::lock_guard lock(mutex_);
      const auto found = index_.find(spec);
      if (found != index_.end()) {
        order_.splice(order_.begin(), order_, found->second);
        return found->second->second;
      }
    }
    // Made outside the lock; two threads may make the same one, the first to return keeps it.
    auto product = std::make_shared<const Product>(make_product(spec));
    const std::lock_guard lock(mutex_);
    if (const auto found = index_.find(spec); found != index_.end())
      return found->second->second;
    order_.emplace_front(spec, std::move(product));
    index_.emplace(spec, order_.begin());
    if (order_.size() > kCapacity) {
      index_.erase(order_.back().first);
      order_.pop_back();
    }
    return order_.front().second;
  }

 private:
  // Shared: an entry may be dropped by one thread while another still runs it.
  using Entry = std::pair<ProductSpec, std::shared_ptr<const Product>>;
  std::mutex mutex_;
  std::list<Entry> order_;
  std::unordered_map<ProductSpec, std::list<Entry>::iterator, SpecHash> index_;
};

std::string describe(const ProductSpec& spec) {
  return "[" + std::to_string(spec.m) + ", " + std::to_string(spec.k) + "] x [" +
         std::to_string(spec.k) + ", " + std::to_string(spec.n) + "] " +
         std::string(name_of(spec.input_dtype)) + " -> " + std::string(name_of(spec.output_dtype));
}
}  // namespace

namespace {
ProductCache& product_cache() {
  // Never destroyed: worker threads may still run products while main() returns.
  static ProductCache& cache = *std::make_unique<ProductCache>().release();
  return cache;
}
}  // namespace

int64_t product_scratch_bytes(const ProductSpec& spec) {
  return static_cast<int64_t>(product_cache().get(spec)->scratchpad.get_size());
}

void run_product(const ProductSpec& spec, const void* a, const void* b, void* c) {
  thread_local dnnl::stream stream(cpu_engine());
  try {
    const auto product = product_cache().get(spec);
    const auto wrap = [](const memory::desc& desc, const void* data) {
      return memory(desc, cpu_engine(), const_cast<void*>(data));
    };
    Tensor scratchpad;
    if (const auto size = static_cast<int64_t>(product->scratchpad.get_size()); size > 0)
      scratchpad = Tensor(Shape{size}, DType::kUInt8);
    const SingleThreadScope single_thread;
    product->primitive.execute(
        stream, {{DNNL_ARG_SRC, wrap(product->a, a)},
                 {DNNL_ARG_WEIGHTS, wrap(product->b, b)},
                 {DNNL_ARG_DST, wrap(product->c, c)},
                 {DNNL_ARG_SCRATCHPAD, wrap(product->scratchpad, scratchpad.view().raw())}});
    stream.wait();
  } catch (const dnnl::error& error) {
    throw DeviceError("gemm " + describe(spec) + ": expected oneDNN to run it, found: " +
                      error.message + ". Rerun with ONEDNN_VERBOSE=2 and report the lines.");
  }
}

void limit_onednn(InstructionSet limit) {
  switch (limit) {
    case InstructionSet::kBaseline:
      dnnl::set_max_cpu_isa(dnnl::cpu_isa::sse41);
      break;
    case InstructionSet::kAvx2:
      dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx2);
      break;
    case InstructionSet::kAvx512:
      dnnl::set_max_cpu_isa(dnnl::cpu_isa::avx512_core_vnni);
      break;
    case InstructionSet::kNative:
      break;
  }
}

bool has_fast_bfloat16() {
  apply_instruction_set_limit();
  static const bool fast = [] {
    const auto isa = dnnl::get_effective_cpu_isa();
    return isa == dnnl::cpu_isa::avx512_core_bf16 || isa == dnnl::cpu_isa::avx512_core_amx;
  }();
  return fast;
}

bool has_fast_int8() {
  apply_instruction_set_limit();
  static const bool fast = [] {
    const auto isa = dnnl::get_effective_cpu_isa();
    return isa == dnnl::cpu_isa::avx512_core_vnni || isa == dnnl::cpu_isa::avx512_core_bf16 ||
           isa == dnnl::cpu_isa::avx512_core_amx;
  }();
  return fast && int8::machine_tile() != nullptr;
}

}  // namespace shardtune::kernels
