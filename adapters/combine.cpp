#include "adapters/combine.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <set>

#include "adapters/adapter.h"
#include "adapters/lora_options.h"
#include "core/checked.h"
#include "io/safetensors.h"

namespace shardtune::adapters {

namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr std::string_view kSuffixA = ".lora_A.weight";
constexpr std::string_view kSuffixB = ".lora_B.weight";

struct Source {
  std::string folder;
  LoraOptions options;
  std::unique_ptr<io::TensorSource> file;
  std::vector<std::string> paths;  // of linears, as PEFT's keys begin
};

struct Pair {
  Matrix a;  // [r,in]
  Matrix b;  // [out,r]
  double factor = 1.0;
};

Source open_source(const std::string& folder) {
  Source source;
  source.folder = folder;
  read_adapter_options(folder);  // tells a folder that is none, and damage
  const std::string path = (std::filesystem::path(folder) / "adapter_config.json").string();
  const io::Json config = io::read_json_file(path);
  if (io::JsonReader(config, path).string("peft_type") != "LORA")
    throw UnsupportedError(path + ": only adapters of method lora can be combined.");
  source.options = parse_lora(*read_peft_options(config, path));
  if (source.options.qalora_group_size > 0)
    throw UnsupportedError(path +
                           ": an adapter with use_qalora cannot be combined: its A sees groups "
                           "of inputs. Merge it first.");
  if (source.options.use_dora || !source.options.targets.trained.is_none() ||
      source.options.targets.is_none)
    throw UnsupportedError(
        path +
        ": an adapter with use_dora, trained biases or modules_to_save cannot be "
        "combined: it holds more than a sum of products. Merge it first.");
  source.file = io::open_safetensors(std::filesystem::path(folder) / "adapter_model.safetensors");
  for (const io::TensorInfo& tensor : source.file->tensors()) {
    if (!tensor.name.starts_with(kModulePrefix))
      throw UnsupportedError(folder + ": " + tensor.name + ": expected a key that begins with " +
                             kModulePrefix + ".");
    if (tensor.name.starts_with(std::string(kModulePrefix) + "lm_head."))
      throw UnsupportedError(folder + ": " + tensor.name +
                             ": changes of the head cannot be combined. Merge it first.");
    if (tensor.name.ends_with(kSuffixA))
      source.paths.push_back(tensor.name.substr(0, tensor.name.size() - kSuffixA.size()));
    else if (!tensor.name.ends_with(kSuffixB))
      throw UnsupportedError(folder + ": " + tensor.name + ": expected lora_A and lora_B alone.");
  }
  return source;
}

Matrix read_matrix(const Source& source, const std::string& key) {
  const io::TensorInfo* info = source.file->find(key);
  if (info == nullptr || info->shape.size() != 2)
    throw DataError(source.folder + ": " + key + ": expected a matrix, found " +
                    (info == nullptr ? "none" : "another shape") + ". The adapter is damaged.");
  std::vector<float> values(static_cast<size_t>(checked_mul(info->shape[0], info->shape[1])));
  source.file->read_float32(*info, 0, std::ssize(values), values.data());
  if (!std::ranges::all_of(values, [](float value) { return std::isfinite(value); }))
    throw NonFiniteError(source.folder + ": " + key + ": NaN or infinity. Use another checkpoint.");
  const Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> map(
      values.data(), info->shape[0], info->shape[1]);
  return map.cast<double>();
}

/// A and B of one linear; `weight` is the adapter's in the sum.
Pair read_pair(const Source& source, const std::string& path, double weight) {
  Pair pair{read_matrix(source, path + std::string(kSuffixA)),
            read_matrix(source, path + std::string(kSuffixB)), 1.0};
  const std::string module = path.substr(std::string(kModulePrefix).size());
  const int64_t rank = source.options.rank_of(module);
  if (pair.a.rows() != rank || pair.b.cols() != rank)
    throw DataError(source.folder + ": " + path + ": expected rank " + std::to_string(rank) +
                    " (adapter_config.json), found " + std::to_string(pair.a.rows()) + " and " +
                    std::to_string(pair.b.cols()) + ".");
  pair.factor = weight * source.options.scale_of(module);
  return pair;
}

Pair concatenated(const std::vector<Pair>& pairs) {
  int64_t rank = 0;
  for (const Pair& pair : pairs)
    rank += pair.a.rows();
  Pair all{Matrix(rank, pairs[0].a.cols()), Matrix(pairs[0].b.rows(), rank), 1.0};
  int64_t first = 0;
  for (const Pair& pair : pairs) {
    all.a.middleRows(first, pair.a.rows()) = pair.a * pair.factor;
    all.b.middleCols(first, pair.b.cols()) = pair.b;
    first += pair.a.rows();
  }
  return all;
}

Pair added(const std::vector<Pair>& pairs) {
  Pair sum{Matrix::Zero(pairs[0].a.rows(), pairs[0].a.cols()),
           Matrix::Zero(pairs[0].b.rows(), pairs[0].b.cols()), 1.0};
  for (const Pair& pair : pairs) {
    const double root = std::sqrt(std::abs(pair.factor));
    sum.a += pair.a * (pair.factor < 0.0 ? -root : root);
    sum.b += pair.b * root;
  }
  return sum;
}

/// delta = B A is of low rank: the SVD of the small product of both triangles, delta is never held.
Pair decomposed(const std::vector<Pair>& pairs, int64_t rank) {
  const Pair all = concatenated(pairs);
  const Eigen::HouseholderQR<Eigen::MatrixXd> left{Eigen::MatrixXd(all.b)};
  const Eigen::HouseholderQR<Eigen::MatrixXd> right{Eigen::MatrixXd(all.a.transpose())};
  const int64_t num_left = std::min(all.b.rows(), all.b.cols());
  const int64_t num_right = std::min(all.a.rows(), all.a.cols());
  const Eigen::MatrixXd upper_left =
      left.matrixQR().topRows(num_left).triangularView<Eigen::Upper>();
  const Eigen::MatrixXd upper_right =
      right.matrixQR().topRows(num_right).triangularView<Eigen::Upper>();
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(upper_left * upper_right.transpose(),
                                              Eigen::ComputeThinU | Eigen::ComputeThinV);
  const int64_t kept = std::min<int64_t>(rank, svd.singularValues().size());
  const Eigen::MatrixXd u =
      left.householderQ() * Eigen::MatrixXd::Identity(all.b.rows(), num_left) *
      svd.matrixU().leftCols(kept) * svd.singularValues().head(kept).asDiagonal();
  const Eigen::MatrixXd v = right.householderQ() *
                            Eigen::MatrixXd::Identity(all.a.cols(), num_right) *
                            svd.matrixV().leftCols(kept);
  return {v.transpose(), u, 1.0};
}

/// Rows of A and columns of B that a linear does not use are zero.
void append(const std::string& path, const Pair& pair, int64_t rank,
            std::vector<CombinedTensor>& tensors) {
  const int64_t used = pair.a.rows();
  CombinedTensor a{path + std::string(kSuffixA), Shape{rank, pair.a.cols()}, {}};
  CombinedTensor b{path + std::string(kSuffixB), Shape{pair.b.rows(), rank}, {}};
  a.values.resize(static_cast<size_t>(a.shape.numel()));
  b.values.resize(static_cast<size_t>(b.shape.numel()));
  std::copy_n(pair.a.data(), pair.a.size(), a.values.begin());
  for (int64_t i = 0; i < pair.b.rows(); ++i)
    std::copy_n(pair.b.data() + i * used, used, b.values.begin() + i * rank);
  tensors.push_back(std::move(a));
  tensors.push_back(std::move(b));
}

int64_t combined_rank(const std::vector<Source>& sources, const Combination& combination) {
  int64_t largest = 0, sum = 0;
  std::set<int64_t> ranks;
  for (const Source& source : sources) {
    double rank = static_cast<double>(source.options.lora_rank);
    for (const auto& [name, of_pattern] : source.options.rank_pattern)
      rank = std::max(rank, of_pattern);
    largest = std::max(largest, static_cast<int64_t>(rank));
    sum += static_cast<int64_t>(rank);
    ranks.insert(static_cast<int64_t>(rank));
    if (combination.type == CombinationType::kLinear && !source.options.rank_pattern.empty())
      throw ConfigError(source.folder +
                        ": linear adds A and B of one rank, found a rank_pattern. "
                        "Use cat or svd.");
  }
  if (combination.type == CombinationType::kCat)
    return sum;
  if (combination.type == CombinationType::kSvd)
    return combination.svd_rank > 0 ? combination.svd_rank : largest;
  if (ranks.size() > 1)
    throw ConfigError("linear: expected adapters of one rank, found " +
                      std::to_string(*ranks.begin()) + " and " + std::to_string(*ranks.rbegin()) +
                      ". Use cat or svd.");
  return largest;
}

Pair combined(const std::vector<Pair>& pairs, const Combination& combination, int64_t rank) {
  switch (combination.type) {
    case CombinationType::kCat:
      return concatenated(pairs);
    case CombinationType::kLinear:
      return added(pairs);
    case CombinationType::kSvd:
      break;
  }
  return decomposed(pairs, rank);
}

io::Json config_of(const std::vector<Source>& sources, const std::set<std::string>& paths,
                   int64_t rank, const std::string& base_model) {
  LoraOptions options;
  options.lora_rank = rank;
  options.lora_alpha = static_cast<double>(rank);
  std::vector<std::string> targets;
  for (const std::string& path : paths)
    targets.push_back(path.substr(std::string(kModulePrefix).size()));
  io::Json config = lora_peft_config(options, targets, base_model);
  const std::string first =
      (std::filesystem::path(sources[0].folder) / "adapter_config.json").string();
  config.set("fan_in_fan_out",
             io::JsonReader(io::read_json_file(first), first).boolean_or("fan_in_fan_out", false));
  return config;
}

}  // namespace

CombinationType combination_type(const std::string& word) {
  const std::map<std::string, CombinationType> types = {{"linear", CombinationType::kLinear},
                                                        {"cat", CombinationType::kCat},
                                                        {"svd", CombinationType::kSvd}};
  const auto found = types.find(word);
  if (found == types.end())
    throw ConfigError("combination type: expected linear, cat or svd, found '" + word + "'.");
  return found->second;
}

CombinedAdapter combine_adapters(const std::vector<std::string>& folders,
                                 const Combination& combination, const std::string& base_model) {
  if (folders.size() < 2 || folders.size() != combination.weights.size())
    throw ConfigError("adapters to combine: expected at least two and a weight for each, found " +
                      std::to_string(folders.size()) + " and " +
                      std::to_string(combination.weights.size()) +
                      " weights. Give --weight once for each adapter, or never.");
  std::vector<Source> sources;
  std::set<std::string> paths;
  for (const std::string& folder : folders) {
    sources.push_back(open_source(folder));
    paths.insert(sources.back().paths.begin(), sources.back().paths.end());
  }
  const int64_t rank = combined_rank(sources, combination);
  CombinedAdapter result;
  for (const std::string& path : paths) {
    std::vector<Pair> pairs;
    for (size_t i = 0; i < sources.size(); ++i) {
      if (std::ranges::find(sources[i].paths, path) == sources[i].paths.end())
        continue;
      pairs.push_back(read_pair(sources[i], path, combination.weights[i]));
      if (pairs.back().a.cols() != pairs[0].a.cols() || pairs.back().b.rows() != pairs[0].b.rows())
        throw DataError(sources[i].folder + ": " + path +
                        ": another shape than in the adapters before it. They are of different "
                        "bases.");
    }
    append(path, combined(pairs, combination, rank), rank, result.tensors);
  }
  result.config = config_of(sources, paths, rank, base_model);
  return result;
}

}  // namespace shardtune::adapters
