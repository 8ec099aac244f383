#include "models/rope_scaling.h"

#include <cmath>
#include <numbers>

#include "core/error.h"
#include "kernels/rope.h"

namespace shardtune::models {

namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
  throw UnsupportedError(name + ": " + what +
                         " is not supported yet (known: default, linear, llama3), see "
                         "docs/status.md.");
}

void require(bool good, const std::string& name, const std::string& what) {
  if (!good)
    throw DataError(name + ": " + what + " The configuration is damaged.");
}

void check_scaling(const RopeScaling& scaling, const std::string& name) {
  require(scaling.factor >= 1.0 && scaling.factor <= 1e6, name,
          "factor of the rope scaling: expected a number in [1, 1e6], found " +
              std::to_string(scaling.factor) + ".");
  if (scaling.type != RopeType::kLlama3)
    return;
  require(scaling.low_freq_factor > 0.0 && scaling.high_freq_factor > scaling.low_freq_factor, name,
          "low_freq_factor and high_freq_factor of the rope scaling: expected 0 < low < high.");
  require(scaling.original_max_position_embeddings >= 1, name,
          "original_max_position_embeddings of the rope scaling: expected an integer above 0.");
}

RopeScaling parse_scaling(const io::JsonReader& rope, const std::string& name) {
  RopeScaling scaling;
  const std::string type = rope.string_or("rope_type", rope.string_or("type", "default"));
  if (type == "default")
    return scaling;
  if (type != "linear" && type != "llama3")
    refuse(name, "rope type '" + type + "'");
  scaling.type = type == "linear" ? RopeType::kLinear : RopeType::kLlama3;
  scaling.factor = rope.number("factor");
  if (scaling.type == RopeType::kLlama3) {
    scaling.low_freq_factor = rope.number("low_freq_factor");
    scaling.high_freq_factor = rope.number("high_freq_factor");
    scaling.original_max_position_embeddings = rope.integer("original_max_position_embeddings");
  }
  return scaling;
}

// The divisor of one inverse frequency, as fp64.
double divisor(const RopeScaling& scaling, double inverse_frequency) {
  if (scaling.type == RopeType::kDefault)
    return 1.0;
  if (scaling.type == RopeType::kLinear)
    return scaling.factor;
  const auto original = static_cast<double>(scaling.original_max_position_embeddings);
  const double wavelength = 2.0 * std::numbers::pi / inverse_frequency;
  if (wavelength < original / scaling.high_freq_factor)
    return 1.0;
  if (wavelength > original / scaling.low_freq_factor)
    return scaling.factor;
  const double smooth = (original / wavelength - scaling.low_freq_factor) /
                        (scaling.high_freq_factor - scaling.low_freq_factor);
  return 1.0 / ((1.0 - smooth) / scaling.factor + smooth);
}

// A GGUF file says what the divisors are and not where they come from; the released models of the
// llama3 type have one of these.
RopeScaling scaling_of_divisors(const ModelConfig& config) {
  for (const double factor : {8.0, 32.0}) {
    const RopeScaling candidate{RopeType::kLlama3, factor, 1.0, 4.0, 8192};
    const auto plain = kernels::rope_inverse_frequencies(config.head_dim, config.rope_theta);
    bool is_same = true;
    for (size_t i = 0; i < plain.size() && is_same; ++i) {
      const double expected = divisor(candidate, plain[i]);
      is_same = std::abs(config.rope_divisors[i] - expected) <= 1e-4 * expected;
    }
    if (is_same)
      return candidate;
  }
  throw UnsupportedError(
      "rope_freqs.weight of the GGUF file holds divisors that are not those of Llama 3.1 or 3.2, "
      "and config.json has no place for others. Export from the Hugging Face folder of the model.");
}

}  // namespace

void parse_rope(const io::JsonReader& json, ModelConfig& config) {
  config.rope_theta = json.number_or("rope_theta", 10000.0);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const io::Json* rope = json.object().find(key);
    if (rope == nullptr || rope->is_null())
      continue;
    const io::JsonReader reader(*rope, json.name() + ": " + key);
    config.rope_theta = reader.number_or("rope_theta", config.rope_theta);
    if (config.rope_scaling.type == RopeType::kDefault)
      config.rope_scaling = parse_scaling(reader, json.name());
    if (reader.number_or("partial_rotary_factor", 1.0) != 1.0)
      refuse(json.name(), "partial_rotary_factor other than 1");
  }
  if (json.number_or("partial_rotary_factor", 1.0) != 1.0)
    refuse(json.name(), "partial_rotary_factor other than 1");
  require(
      config.rope_theta > 0.0, json.name(),
      "rope_theta: expected a number above 0, found " + std::to_string(config.rope_theta) + ".");
  check_scaling(config.rope_scaling, json.name());
}

void parse_gguf_rope(const io::GgufFile& file, const std::string& prefix, ModelConfig& config) {
  const std::string& name = file.path();
  config.rope_theta = file.number_or(prefix + "rope.freq_base", 10000.0);
  require(config.rope_theta > 0.0, name, prefix + "rope.freq_base: expected a number above 0.");
  if (file.integer_or(prefix + "rope.dimension_count", config.head_dim) != config.head_dim)
    refuse(name, "a rope.dimension_count other than the head size");
  const std::string type = file.string_or(prefix + "rope.scaling.type", "none");
  // Older files say "linear" by the factor alone.
  const double old_factor = file.number_or(prefix + "rope.scale_linear", 0.0);
  if (type == "linear" || (type == "none" && old_factor > 0.0 && old_factor != 1.0)) {
    config.rope_scaling.type = RopeType::kLinear;
    config.rope_scaling.factor =
        type == "linear" ? file.number(prefix + "rope.scaling.factor") : old_factor;
  } else if (type != "none") {
    refuse(name, "rope.scaling.type '" + type + "'");
  }
  check_scaling(config.rope_scaling, name);
  const io::TensorInfo* divisors = file.find("rope_freqs.weight");
  if (divisors == nullptr)
    return;
  require(divisors->shape == std::vector<int64_t>{config.head_dim / 2}, name,
          "rope_freqs.weight: expected " + std::to_string(config.head_dim / 2) +
              " values, half the head size.");
  config.rope_divisors.resize(static_cast<size_t>(config.head_dim / 2));
  file.read_float32(*divisors, 0, config.head_dim / 2, config.rope_divisors.data());
  for (const float value : config.rope_divisors)
    require(value > 0.0f && std::isfinite(value), name,
            "rope_freqs.weight: expected numbers above 0.");
}

void write_rope(const ModelConfig& config, io::Json& json) {
  const RopeScaling scaling =
      config.rope_divisors.empty() ? config.rope_scaling : scaling_of_divisors(config);
  io::Json rope = io::Json::object();
  rope.set("rope_type", scaling.type == RopeType::kDefault  ? "default"
                        : scaling.type == RopeType::kLinear ? "linear"
                                                            : "llama3");
  if (scaling.type != RopeType::kDefault)
    rope.set("factor", scaling.factor);
  if (scaling.type == RopeType::kLlama3) {
    rope.set("low_freq_factor", scaling.low_freq_factor);
    rope.set("high_freq_factor", scaling.high_freq_factor);
    rope.set("original_max_position_embeddings", scaling.original_max_position_embeddings);
  }
  json.set("rope_theta", config.rope_theta);
  if (scaling.type != RopeType::kDefault)
    json.set("rope_scaling", rope);
  rope.set("rope_theta", config.rope_theta);
  json.set("rope_parameters", std::move(rope));
}

std::vector<io::GgufPair> gguf_rope_keys(const std::string& prefix, const ModelConfig& config) {
  std::vector<io::GgufPair> keys = {
      io::gguf_uint32(prefix + "rope.dimension_count", static_cast<uint32_t>(config.head_dim)),
      io::gguf_float32(prefix + "rope.freq_base", static_cast<float>(config.rope_theta))};
  if (config.rope_scaling.type == RopeType::kLinear) {
    keys.push_back(io::gguf_string(prefix + "rope.scaling.type", "linear"));
    keys.push_back(io::gguf_float32(prefix + "rope.scaling.factor",
                                    static_cast<float>(config.rope_scaling.factor)));
  }
  return keys;
}

std::vector<float> gguf_rope_divisors(const ModelConfig& config) {
  if (config.rope_scaling.type != RopeType::kLlama3)
    return config.rope_divisors;
  std::vector<float> divisors;
  for (const float plain : kernels::rope_inverse_frequencies(config.head_dim, config.rope_theta))
    divisors.push_back(static_cast<float>(divisor(config.rope_scaling, plain)));
  return divisors;
}

std::vector<float> rope_frequencies(const ModelConfig& config) {
  auto frequencies = kernels::rope_inverse_frequencies(config.head_dim, config.rope_theta);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double by = divisor(config.rope_scaling, frequencies[i]);
    if (!config.rope_divisors.empty())
      by *= config.rope_divisors[i];
    frequencies[i] = static_cast<float>(frequencies[i] / by);
  }
  return frequencies;
}

}  // namespace shardtune::models
