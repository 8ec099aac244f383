#include "adapters/merge_aware.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/dry_run.h"
#include "quant/low_rank_rows.h"

namespace shardtune::adapters {

namespace {

/// A and B of a linear, copied while its unit was leased: quantising publishes into that unit.
struct Factors {
  Tensor lora_A;
  Tensor lora_B;
};

Tensor copy_of(const TensorView& value) {
  Tensor copy(value.shape(), value.dtype());
  std::ranges::copy(value.span<const float>(), copy.data<float>());
  return copy;
}

}  // namespace

void RequantisedBase::add(models::BaseLinear& linear, const autograd::LowRank& change) {
  const std::string format(linear.weight().format());
  if (!linear.weight().can_requantize())
    throw ConfigError("adapter.merge_aware: quantises the changed base anew in each step, but " +
                      linear.path() + " is kept as it is (quantization.method " + format +
                      "). Use quantization.method nf4, fp4 or int8, or 'merge_aware: false'.");
  if (linear.int8() != nullptr)
    throw ConfigError(
        "adapter.merge_aware: changes the codes of the base in each step, for which the scales of "
        "'model.compute_dtype: int8' were not chosen. Use bfloat16 or float32.");
  const auto place = std::ranges::find_if(
      linears_, [&](const Changed& other) { return other.linear->unit() > linear.unit(); });
  linears_.insert(place, Changed{&linear, change, nullptr});
}

void RequantisedBase::keep(const models::ModelSource& source, const Adapter::Keeps& keeps) {
  for (Changed& changed : linears_) {
    const quant::FrozenWeight& weight = changed.linear->weight();
    if (!keeps(*changed.linear))
      continue;
    const int64_t columns = weight.in_features(), rows = weight.out_features();
    changed.kept = std::make_unique<quant::KeptWeight>(form_, rows, columns);
    if (DryRun::current() == nullptr) {
      constexpr int64_t kSlabValues = int64_t{1} << 20;
      const int64_t step = std::clamp<int64_t>(kSlabValues / columns, 1, rows);
      std::vector<float> slab(static_cast<size_t>(step * columns));
      for (int64_t begin = 0; begin < rows; begin += step) {
        const int64_t end = std::min(begin + step, rows);
        source.read_rows(weight.name(), begin, end, slab.data());
        changed.kept->write_rows(begin, std::span(slab).first((end - begin) * columns));
      }
    }
    source.drop(weight.name());
  }
}

void RequantisedBase::requantise() const {
  for (size_t begin = 0; begin < linears_.size();) {
    size_t end = begin + 1;
    while (end < linears_.size() && linears_[end].linear->unit() == linears_[begin].linear->unit())
      ++end;
    requantise_unit(std::span(linears_).subspan(begin, end - begin));
    begin = end;
  }
}

void RequantisedBase::requantise_unit(std::span<const Changed> linears) const {
  ParameterStore& store = model_.store();
  std::vector<Factors> factors(linears.size());
  UnitLease lease = store.acquire(linears.front().linear->unit(), Pass::kForward);
  if (DryRun::current() != nullptr)
    return;
  for (size_t i = 0; i < linears.size(); ++i) {
    for (const ParameterId id : {linears[i].change.lora_A, linears[i].change.lora_B}) {
      // Every rank sees them whole, so that all stop, not the owner of the codes alone.
      const auto values = store.value(id).span<const float>();
      if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); }))
        throw NonFiniteError(store.spec(id).name +
                             ": expected finite weights, found NaN or infinity while quantising "
                             "the base anew. Lower training.learning_rate and resume.");
    }
    if (linears[i].kept != nullptr)
      factors[i] = {copy_of(store.value(linears[i].change.lora_A)),
                    copy_of(store.value(linears[i].change.lora_B))};
  }
  lease.reset();
  for (size_t i = 0; i < linears.size(); ++i) {
    const auto& [linear, change, kept] = linears[i];
    const quant::LowRankChange update{factors[i].lora_A.view(), factors[i].lora_B.view(),
                                      change.scale};
    linear->weight().requantize([&](int64_t begin, int64_t end, float* out) {
      kept->decode_rows(begin, end, out);
      quant::add_low_rank_rows(update, begin, end, out);
    });
  }
}

}  // namespace shardtune::adapters
