// LoRA: y = W x + scale * B (A dropout(x)), scale = alpha / r, or alpha / sqrt(r) with rslora.
// A starts U(-1/sqrt(in), 1/sqrt(in)) (PEFT's kaiming_uniform with a = sqrt 5) or N(0, 1/r^2)
// ("gaussian"), B at zero, so training starts at the base model. PiSSA and OLoRA start at factors
// of W itself: PEFT then takes their product out of the base, here the start (A0, B0) is kept
// beside and its product subtracted, so the base stays as it is in any frozen format, and what is
// saved is a plain LoRA of rank 2 r. QA-LoRA: A [r, in / g] sees in / g^2 times the sum of each
// group of g inputs, so that a weight changes by the same for all columns of a group. With
// merge_aware the base holds Q(W + scale * B A) and y is its product alone (merge_aware.h).
// loraplus_lr_ratio multiplies the learning rate of B. Source Hu et al. 2021, arXiv:2106.09685;
// Kalajdzievski 2023, rsLoRA, arXiv:2312.03732; Hayou et
//         al. 2024, LoRA+, arXiv:2402.12354; dora.h and lora_init.h name theirs
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>

#include "adapters/dora.h"
#include "adapters/eva.h"
#include "adapters/eva_ranks.h"
#include "adapters/linear_adapter.h"
#include "adapters/lora_checks.h"
#include "adapters/lora_init.h"
#include "adapters/lora_options.h"
#include "adapters/lora_tables.h"
#include "adapters/merge_aware.h"
#include "adapters/methods.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"
#include "kernels/column_groups.h"
#include "kernels/gemm.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using kernels::Transpose;
using models::BaseLinear;
using models::VocabularyTable;

enum Slot : size_t { kA, kB, kMagnitude };

/// What is derived from the base for one linear, whole on every rank.
struct Derived {
  std::shared_ptr<Tensor> start_A;  // of PiSSA and OLoRA
  std::shared_ptr<Tensor> start_B;
  Tensor norms_squared;  // of DoRA
};

class Lora : public LinearAdapter {
 public:
  Lora(const LoraOptions& options, models::Model& model)
      : LinearAdapter(model),
        options_(options),
        derived_(model.linears().size()),
        scales_(model.linears().size()) {
    if (options.merge_aware)
      requantised_.emplace(model, *options.merge_aware);
    for (BaseLinear* linear : match_target_modules(options.targets, model, Tables::kChanged)) {
      attach(*linear);
      if (requantised_ && wraps(*linear))
        requantised_->add(*linear, {id_of(*linear, kA), id_of(*linear, kB), scale_of(*linear)});
    }
    tables_.paths = match_target_tables(options.targets, model);
    attach_tables();
  }

  std::string_view method() const override { return "lora"; }
  void initialize(const InitContext& context) override {
    seed_ = context.seed;
    source_ = context.source;
    if (options_.shares_ranks())
      throw ArgumentError("init_lora_weights eva: expected ranks that were fitted to data");
    if (options_.init == LoraInit::kEva)
      see_inputs(context);
    LinearAdapter::initialize(context);
    last_start_ = {};
    source_ = nullptr;
    directions_.clear();
  }
  void finish_loading() override;
  void keep_base(const models::ModelSource& source, const Keeps& keeps) override {
    if (requantised_)
      requantised_->keep(source, keeps);
  }
  void renew_base() override {
    if (requantised_)
      requantised_->requantise();
  }
  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                     const models::PassContext& context, const Next& next) override;
  void merge_rows(const BaseLinear& linear, int64_t begin, int64_t end,
                  const TensorView& rows) const override;
  int64_t columns_per_change(const BaseLinear&) const override {
    return std::max<int64_t>(1, options_.qalora_group_size);
  }
  std::optional<UnitId> front_unit() const override {
    return tables_.paths.embedding.empty() ? std::nullopt : std::optional(tables_.front_unit);
  }
  Variable after_embedding(Tape& tape, const Variable& x,
                           const models::PassContext& context) override {
    return changes(Table::kEmbedding) ? update_embedding(tape, x, context.batch->ids, tables_) : x;
  }
  Variable before_head(Tape& tape, const Variable& hidden,
                       const models::PassContext& context) override;
  bool changes(Table table) const override {
    return !(table == Table::kEmbedding ? tables_.paths.embedding : tables_.paths.head).empty();
  }
  void merge_table_rows(Table table, int64_t begin, int64_t end,
                        const TensorView& rows) const override {
    if (table == Table::kEmbedding)
      merge_embedding_rows(tables_, model(), begin, end, rows);
    else
      merge_head_rows(tables_, model(), begin, end, rows);
  }
  bool is_copy_of_base(const io::TensorInfo& tensor, const io::TensorSource& file) const override {
    return is_copy_of_table(tables_, model(), tensor, file);
  }
  double learning_rate_scale(ParameterId id) const override {
    // Parts of the head's have a number behind it.
    const bool is_b = store().spec(id).name.find(".lora_B.weight") != std::string::npos;
    return is_b ? options_.loraplus_lr_ratio : 1.0;
  }
  std::vector<SavedTensor> saved_tensors() const override;
  std::vector<models::NamedState> named_state() const override {
    return eva_states(options_, model());
  }
  io::Json peft_config(const std::string& base_model) const override {
    std::vector<std::string> targets = wrapped_targets();
    for (const std::string& path : {tables_.paths.embedding, tables_.paths.head}) {
      if (!path.empty())
        targets.push_back(path.substr(path.rfind('.') + 1));
    }
    std::ranges::sort(targets);
    io::Json config = lora_peft_config(options_, targets, base_model);
    config.set("fan_in_fan_out", wraps_conv1d());
    if (options_.targets.is_none)
      config.set("target_modules", kNoTargets);
    return with_trained_parts(std::move(config), options_.targets);
  }

 private:
  void attach(const BaseLinear& linear);
  void attach_tables();
  void attach_embedding();
  void attach_head();
  void see_inputs(const InitContext& context);
  const Derived& derived_of(const BaseLinear& linear) const {
    return derived_[static_cast<size_t>(linear.index())];
  }
  float scale_of(const BaseLinear& linear) const {
    return scales_[static_cast<size_t>(linear.index())];
  }
  /// Columns of A: inputs, or groups of them.
  int64_t columns_of(const BaseLinear& linear) const {
    return options_.columns_of(linear.in_features());
  }
  /// PEFT's: the mean of a group times their number.
  float group_factor(const BaseLinear& linear) const {
    return static_cast<float>(static_cast<double>(columns_of(linear)) /
                              static_cast<double>(options_.qalora_group_size));
  }
  Tensor spread_over_inputs(const BaseLinear& linear, const Tensor& a) const;
  const LoraFactors& start_of(const BaseLinear& linear);
  Variable low_rank(Tape& tape, const BaseLinear& linear, const Variable& x,
                    const Variable& dropped, const Next& next, std::optional<DType> result) const;
  Tensor row_norms(const BaseLinear& linear) const;
  /// The value of a factor with what it started from.
  Tensor stacked(ParameterId id, const Tensor* start, bool by_columns) const {
    return with_start(store().value(id), start, by_columns);
  }

  LoraOptions options_;
  LoraTables tables_;
  std::vector<Derived> derived_;                // by BaseLinear::index()
  std::vector<float> scales_;                   // by BaseLinear::index()
  std::vector<std::vector<float>> directions_;  // of EVA, by BaseLinear::index(), at the start
  uint64_t seed_ = 0;
  const models::ModelSource* source_ = nullptr;           // while initial values are made
  std::pair<const BaseLinear*, LoraFactors> last_start_;  // A and B of a linear come in turn
  std::optional<RequantisedBase> requantised_;            // of merge-aware training
};

void Lora::attach(const BaseLinear& linear) {
  const int64_t rank = options_.rank_of(linear.path());
  if (rank == 0)
    return;  // EVA gave it none
  scales_[static_cast<size_t>(linear.index())] =
      static_cast<float>(options_.scale_of(linear.path()));
  if (options_.qalora_group_size > 0)
    check_groups(options_, linear);
  if (options_.is_new)
    check_rank("lora_rank", rank, linear);
  if (options_.init == LoraInit::kLoftq)
    check_loftq(options_, linear);
  const bool factors = options_.is_relative() || options_.init == LoraInit::kOrthogonal ||
                       options_.init == LoraInit::kLoftq;
  const Reads reads = factors ? Reads::kBase : Reads::kNothing;
  Initializer a = options_.init == LoraInit::kGaussian
                      ? normal_values(1.0f / static_cast<float>(rank))
                      : kaiming_values(columns_of(linear));
  Initializer b = constant_values(0.0f);
  if (factors) {
    a = [this, &linear](const CounterRng&, std::span<float> values) {
      std::ranges::copy(start_of(linear).lora_A, values.begin());
    };
    b = [this, &linear](const CounterRng&, std::span<float> values) {
      std::ranges::copy(start_of(linear).lora_B, values.begin());
    };
  }
  if (options_.init == LoraInit::kEva)
    a = [this, &linear](const CounterRng&, std::span<float> values) {
      std::ranges::copy(directions_[static_cast<size_t>(linear.index())], values.begin());
    };
  declare(linear, ".lora_A.weight", {rank, columns_of(linear)}, std::move(a), reads);
  declare(linear, ".lora_B.weight", {linear.out_features(), rank}, std::move(b), reads);
  Derived& derived = derived_[static_cast<size_t>(linear.index())];
  if (options_.is_relative()) {
    const auto zeros = [](Shape shape) {
      return std::make_shared<Tensor>(Tensor(shape, DType::kFloat32));
    };
    derived.start_A = zeros({rank, linear.in_features()});
    derived.start_B = zeros({linear.out_features(), rank});
  }
  if (!options_.use_dora)
    return;
  const auto magnitude = [&linear](const CounterRng&, std::span<float> values) {
    base_row_norms_squared(linear, values);
    std::ranges::transform(values, values.begin(),
                           [](float squared) { return std::sqrt(squared); });
  };
  declare(linear, ".lora_magnitude_vector", {linear.out_features()}, magnitude, Reads::kBase);
  derived.norms_squared = Tensor(Shape{linear.out_features()}, DType::kFloat32);
}

void Lora::attach_tables() {
  if (!tables_.paths.any())
    return;
  check_tables(options_, tables_.paths, model().head());
  if (changes(Table::kEmbedding))
    attach_embedding();
  if (changes(Table::kHead))
    attach_head();
}

// PEFT starts A at zero here, and B at N(0, 1).
void Lora::attach_embedding() {
  const std::string& path = tables_.paths.embedding;
  const VocabularyTable& table = *model().tables().front();
  const int64_t rank = options_.rank_of(path);
  tables_.front_unit = model().add_front_unit(path + ".lora_embedding");
  tables_.embedding_scale = static_cast<float>(options_.scale_of(path));
  const auto add = [&](const char* suffix, Shape shape, Initializer initializer) {
    return AdapterBase::declare({tables_.front_unit, path + suffix, shape, std::move(initializer)});
  };
  tables_.embedding_A = add(".lora_embedding_A", {rank, table.vocab_size()}, constant_values(0.0f));
  tables_.embedding_B = add(".lora_embedding_B", {table.hidden_size(), rank}, normal_values(1.0f));
}

void Lora::attach_head() {
  const std::string& path = tables_.paths.head;
  const VocabularyTable& table = model().head();
  const int64_t rank = options_.rank_of(path);
  tables_.head_scale = static_cast<float>(options_.scale_of(path));
  Initializer a = options_.init == LoraInit::kGaussian
                      ? normal_values(1.0f / static_cast<float>(rank))
                      : kaiming_values(table.hidden_size());
  tables_.head_A = AdapterBase::declare({model().final_unit(), path + ".lora_A.weight",
                                         Shape{rank, table.hidden_size()}, std::move(a)});
  const std::string name = path + ".lora_B.weight";
  for (int64_t c = 0; c < table.num_chunks(); ++c) {
    Declaration part;
    part.unit = table.chunk(c).unit();
    part.name = name + ".chunk" + std::to_string(c);
    part.shape = Shape{table.chunk(c).out_features(), rank};
    part.initializer = constant_values(0.0f);
    part.file_name = name;
    part.in_file.emplace();
    part.in_file->shape = Shape{table.vocab_size(), rank};
    part.in_file->first_row = table.chunk_begin(c);
    tables_.head_B.push_back(AdapterBase::declare(std::move(part)));
  }
  model().add_head_columns(tables_.head_B);
}

Variable Lora::before_head(Tape& tape, const Variable& hidden, const models::PassContext& context) {
  if (!changes(Table::kHead))
    return hidden;
  const auto site = static_cast<uint64_t>(std::ssize(model().linears()));  // behind all linears
  const Variable u =
      autograd::matmul(tape, drop(tape, site, hidden, context, options_.lora_dropout),
                       tape.parameter(tables_.head_A), Transpose::kYes);
  return autograd::append_columns(tape, hidden, autograd::scaled(tape, u, tables_.head_scale));
}

void Lora::see_inputs(const InitContext& context) {
  std::vector<EvaTarget> targets;
  directions_.resize(model().linears().size());
  for (const BaseLinear* linear : model().linears()) {
    const int64_t rank = wraps(*linear) ? options_.rank_of(linear->path()) : 0;
    std::vector<float>& directions = directions_[static_cast<size_t>(linear->index())];
    if (rank > 0 && options_.eva_start != nullptr)
      directions = options_.eva_start->at(linear->path());
    else if (options_.has_eva_ranks)  // of a checkpoint, which brings the values too
      directions.resize(static_cast<size_t>(rank * linear->in_features()));
    else if (rank > 0)
      targets.push_back({linear, rank});
  }
  if (targets.empty())
    return;
  const auto found =
      eva_directions(std::ssize(model().linears()), targets, context, options_.eva.use_label_mask);
  for (size_t i = 0; i < targets.size(); ++i) {
    const BaseLinear& linear = *targets[i].linear;
    directions_[static_cast<size_t>(linear.index())] =
        eva_start_of(*found[i], targets[i].rank, linear.in_features(), options_.eva.whiten);
  }
}

const LoraFactors& Lora::start_of(const BaseLinear& linear) {
  if (last_start_.first != &linear) {
    LoraFactorRequest request;
    request.init = options_.init;
    request.rank = options_.rank_of(linear.path());
    request.scale = options_.scale_of(linear.path());
    request.niter = options_.pissa_niter;
    request.source = source_;
    request.rng = CounterRng(mix_key(seed_, linear.path() + ".start"));
    last_start_ = {&linear, factor_lora_start(linear, request)};
  }
  return last_start_.second;
}

void Lora::finish_loading() {
  for (const BaseLinear* linear : model().linears()) {
    Derived& derived = derived_[static_cast<size_t>(linear->index())];
    if (derived.start_A == nullptr && derived.norms_squared.empty())
      continue;
    const UnitLease lease = store().acquire(linear->unit(), Pass::kForward);
    if (derived.start_A != nullptr) {
      // A and B were published a moment ago: they are their own start.
      std::ranges::copy(store().value(id_of(*linear, kA)).span<const float>(),
                        derived.start_A->data<float>());
      std::ranges::copy(store().value(id_of(*linear, kB)).span<const float>(),
                        derived.start_B->data<float>());
    }
    if (!derived.norms_squared.empty())
      base_row_norms_squared(*linear, derived.norms_squared.span<float>());
  }
  renew_base();
}

// The base on x + scale * (B A - B0 A0) dropped
Variable Lora::low_rank(Tape& tape, const BaseLinear& linear, const Variable& x,
                        const Variable& dropped, const Next& next,
                        std::optional<DType> result) const {
  const Derived& derived = derived_of(linear);
  const float scale = scale_of(linear);
  const bool is_relative = derived.start_A != nullptr;
  const autograd::LowRank update{id_of(linear, kA), id_of(linear, kB), scale,
                                 is_relative ? DType::kFloat32 : result};
  const Variable seen = options_.qalora_group_size == 0
                            ? dropped
                            : autograd::sum_column_groups(tape, dropped, options_.qalora_group_size,
                                                          group_factor(linear));
  const Variable sum = next.with_low_rank(x, seen, update);
  if (!is_relative)
    return sum;
  const Variable u =
      autograd::matmul(tape, dropped, Variable::constant_view(*derived.start_A), Transpose::kYes);
  const Variable start = autograd::matmul(tape, u, Variable::constant_view(*derived.start_B),
                                          Transpose::kYes, DType::kFloat32);
  return autograd::add(tape, sum, autograd::scaled(tape, start, -scale));
}

Variable Lora::on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                         const models::PassContext& context, const Next& next) {
  if (requantised_)
    return autograd::low_rank_straight_through(
        tape, next(x), x, {id_of(linear, kA), id_of(linear, kB), scale_of(linear)});
  const Variable seen = drop(tape, linear, x, context, options_.lora_dropout);
  if (!options_.use_dora)
    return low_rank(tape, linear, x, seen, next, std::nullopt);
  const bool drops = context.mode == models::Mode::kTraining && options_.lora_dropout > 0.0;
  const Variable changed = low_rank(tape, linear, seen, seen, next, DType::kFloat32);
  const Variable scaled = scale_to_magnitude(
      tape, changed, {id_of(linear, kMagnitude), row_norms(linear), linear.bias()},
      drops ? DType::kFloat32 : x.dtype());
  if (!drops)
    return scaled;
  // As PEFT: the base sees all of x, only what DoRA adds to it sees the dropped one.
  const Variable without = autograd::scaled(tape, next(seen), -1.0f);
  return autograd::add(tape, next(x), autograd::add(tape, scaled, without));
}

Tensor Lora::row_norms(const BaseLinear& linear) const {
  const Derived& derived = derived_of(linear);
  const Tensor a = stacked(id_of(linear, kA), derived.start_A.get(), false);
  const Tensor b = stacked(id_of(linear, kB), derived.start_B.get(), true);
  return changed_row_norms(linear, derived.norms_squared, {a.view(), b.view(), scale_of(linear)},
                           model().compute_dtype());
}

// The A [r,in] of a plain LoRA with the same change: the same column for each input of a group.
Tensor Lora::spread_over_inputs(const BaseLinear& linear, const Tensor& a) const {
  Tensor whole(Shape{a.dim(0), linear.in_features()}, DType::kFloat32);
  kernels::spread_column_groups(a, group_factor(linear), whole, kernels::Accumulate::kNo);
  return whole;
}

void Lora::merge_rows(const BaseLinear& linear, int64_t begin, int64_t end,
                      const TensorView& rows) const {
  if (!wraps(linear))
    return;
  const Derived& derived = derived_of(linear);
  Tensor a = stacked(id_of(linear, kA), derived.start_A.get(), false);
  if (options_.qalora_group_size > 0)
    a = spread_over_inputs(linear, a);
  const Tensor b = stacked(id_of(linear, kB), derived.start_B.get(), true);
  add_product(b.view().rows(begin, end), a, scale_of(linear), rows);
  if (!options_.use_dora)
    return;
  const TensorView magnitude = store().value(id_of(linear, kMagnitude));
  for (int64_t i = begin; i < end; ++i) {
    const auto row = rows.rows(i - begin, i - begin + 1).span<float>();
    double squared = 0.0;
    for (const float w : row)
      squared += static_cast<double>(w) * w;
    const auto factor = static_cast<float>(magnitude.data<const float>()[i] / std::sqrt(squared));
    std::ranges::transform(row, row.begin(), [&](float w) { return w * factor; });
  }
}

std::vector<SavedTensor> Lora::saved_tensors() const {
  std::vector<SavedTensor> saved = LinearAdapter::saved_tensors();
  if (!options_.is_relative())
    return saved;
  std::map<ParameterId, const Derived*> starts;
  for (const BaseLinear* linear : model().linears()) {
    if (wraps(*linear)) {
      starts[id_of(*linear, kA)] = &derived_of(*linear);
      starts[id_of(*linear, kB)] = &derived_of(*linear);
    }
  }
  for (SavedTensor& tensor : saved) {
    const bool is_a = tensor.name.ends_with(".lora_A.weight");
    if (!is_a && !tensor.name.ends_with(".lora_B.weight"))
      continue;
    const Derived& derived = *starts.at(tensor.sources[0]);
    add_start(tensor, is_a, is_a ? derived.start_A : derived.start_B);
  }
  return saved;
}

class AttachLora : public AdapterOptions {
 public:
  explicit AttachLora(LoraOptions options) : options_(std::move(options)) {}
  std::string_view method() const override { return "lora"; }
  std::vector<std::pair<std::string, std::string>> keys() const override {
    return lora_keys(options_);
  }
  models::TrainedBase trained_base(const models::ModelConfig&) const override {
    return trained_base_of(options_.targets);
  }
  std::optional<quant::KeptForm> merge_aware() const override { return options_.merge_aware; }
  void set_merge_aware(quant::KeptForm form) override { options_.merge_aware = form; }
  FromData from_data() const override {
    if (options_.init != LoraInit::kEva)
      return FromData::kNothing;
    return options_.shares_ranks() ? FromData::kShapes : FromData::kValues;
  }
  std::unique_ptr<AdapterOptions> fitted_to_data(models::Model& model,
                                                 const InitContext& context) const override {
    auto fitted = eva_fitted_to_data(options_, model, context);
    return fitted ? std::make_unique<AttachLora>(std::move(*fitted)) : nullptr;
  }
  std::unique_ptr<AdapterOptions> fitted_as(
      models::Model& model, const std::vector<models::NamedState>& states) const override {
    return std::make_unique<AttachLora>(eva_fitted_as(options_, model, states));
  }
  std::unique_ptr<Adapter> attach(models::Model& model) const override {
    auto adapter = std::make_unique<Lora>(
        options_.shares_ranks() ? eva_with_most_bytes(options_, model) : options_, model);
    adapter->add_trained_tensors();
    return adapter;
  }

 private:
  LoraOptions options_;
};

}  // namespace

std::unique_ptr<AdapterOptions> read_lora(const OptionReader& reader) {
  return std::make_unique<AttachLora>(parse_lora(reader));
}

}  // namespace shardtune::adapters
