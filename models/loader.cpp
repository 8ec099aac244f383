#include "models/loader.h"

#include "quant/rounding.h"

namespace shardtune::models {

namespace {
void require_finite(const std::string& where, std::span<const float> values) {
  if (const auto bad = quant::first_non_finite(values, 0))
    throw NonFiniteError(where + ": expected finite values, found " +
                         std::to_string(values[static_cast<size_t>(*bad)]) + " at " +
                         std::to_string(*bad) +
                         ". The model file is damaged or overflowed when it was converted; use "
                         "another copy.");
}
}  // namespace

void Loader::expect_shape(const std::string& name, const std::vector<int64_t>& expected) const {
  const std::vector<int64_t> found = source_.shape(name);
  if (found == expected) {
    source_.check_readable(name);
    return;
  }
  const auto text = [](const std::vector<int64_t>& shape) {
    std::string joined;
    for (const int64_t extent : shape)
      joined += (joined.empty() ? "" : ", ") + std::to_string(extent);
    return "[" + joined + "]";
  };
  throw DataError(source_.path() + ": " + name + ": expected " + text(expected) +
                  " (from the model's configuration), found " + text(found) +
                  ". Use configuration and weights of one model.");
}

ParameterId Loader::vector(UnitId unit, const std::string& name, int64_t size, Kind kind) {
  expect_shape(name, {size});
  const bool trains = options_.trained(name, kind);
  const ParameterId id =
      store_.declare({name, unit, trains ? ParameterKind::kTrainable : ParameterKind::kFrozen,
                      DType::kFloat32, Shape{size}});
  if (trains)
    trained_.push_back({name, id, 0, Shape{size}, {}});
  loads_.push_back([this, id, name, size](quant::LoadBuffers&) {
    std::vector<float> values;
    if (store_.is_publisher(id)) {
      values.resize(static_cast<size_t>(size));
      source_.read_rows(name, 0, size, values.data());
      require_finite(source_.path() + ": " + name, values);
      source_.drop(name);
    }
    store_.publish(id, std::as_bytes(std::span(values)));
  });
  return id;
}

const BaseLinear* Loader::linear(UnitId unit, const std::string& path, Shape out_in, Bias bias) {
  const std::string name = path + ".weight";
  expect_shape(name, {out_in[0], out_in[1]});
  quant::FrozenWeightRequest request;
  request.store = &store_;
  request.unit = unit;
  request.name = name;
  request.out_features = out_in[0];
  request.in_features = out_in[1];
  request.compute = options_.compute_dtype;
  request.stored = {source_.stored_type(name),
                    [this, name](int64_t begin, int64_t end, std::byte* out) {
                      source_.read_stored_rows(name, begin, end, out);
                    }};
  request.is_trained = options_.trained(name, Kind::kLinear);
  if (request.is_trained && options_.quantization.method != "none") {
    throw UnsupportedError(
        name + ": is to be trained, but quantization.method " + options_.quantization.method +
        " keeps codes of it, which no step can move. Use 'method: none', or train an adapter.");
  }
  auto weight = quant::make_frozen_weight(request, options_.quantization);
  const ParameterId trained = request.is_trained ? weight->components().front() : kNoParameter;
  if (request.is_trained)
    trained_.push_back({name, trained, 0, out_in, {}});
  loads_.push_back([this, weight = weight.get(), name](quant::LoadBuffers& buffers) {
    weight->load(
        [&](int64_t begin, int64_t end, float* out) { source_.read_rows(name, begin, end, out); },
        buffers);
    source_.drop(name);
  });
  const ParameterId bias_id = bias == Bias::kYes
                                  ? vector(unit, path + ".bias", out_in[0], Kind::kLinearBias)
                                  : kNoParameter;
  const int index = static_cast<int>(linears_.size());
  linears_.push_back(std::make_unique<BaseLinear>(path, index, std::move(weight), bias_id));
  linears_.back()->set_trained(trained);
  return linears_.back().get();
}

std::unique_ptr<VocabularyTable> Loader::table(const std::string& name, int64_t rows,
                                               const std::string& from) {
  const std::string& source = from.empty() ? name : from;
  const int64_t width = source_.config().hidden_size;
  expect_shape(source, {rows, width});
  const bool trains = options_.trained(name, Kind::kTable);
  auto table = std::make_unique<VocabularyTable>(
      store_, name, TableShape{rows, width, options_.compute_dtype, trains});
  for (int64_t c = 0; trains && c < table->num_chunks(); ++c)
    trained_.push_back({name,
                        table->chunk(c).components().front(),
                        table->chunk_begin(c),
                        Shape{rows, width},
                        {}});
  loads_.push_back([this, table = table.get(), source](quant::LoadBuffers& buffers) {
    table->load(
        [&](int64_t begin, int64_t end, float* out) { source_.read_rows(source, begin, end, out); },
        buffers);
    source_.drop(source);
  });
  return table;
}

void Loader::run() {
  quant::LoadBuffers buffers;
  const auto total = static_cast<int64_t>(loads_.size());
  for (int64_t done = 0; done < total; ++done) {
    loads_[static_cast<size_t>(done)](buffers);
    if (options_.progress)
      options_.progress(done + 1, total);
  }
  loads_.clear();
}

}  // namespace shardtune::models
