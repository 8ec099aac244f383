#include "inference/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/checked.h"

namespace shardtune::inference {
namespace {

std::byte* bytes_of(const TensorView& view) { return static_cast<std::byte*>(view.raw()); }

void copy_rows(const TensorView& from, const TensorView& to) {
  SHARDTUNE_ASSERT(from.num_bytes() == to.num_bytes() && from.dtype() == to.dtype());
  std::memcpy(to.raw(), from.raw(), static_cast<size_t>(from.num_bytes()));
}

// The rows of a cached sequence that the last of `tokens` tokens sees: the prefix, and of the
// tokens those in the window. Where they do not lie together, `joined` owns a copy.
kernels::CachedSequence seen_rows(const SequenceKv& sequence, int layer, int64_t tokens,
                                  int64_t window, std::vector<Tensor>& joined) {
  const int64_t prefix = sequence.num_prefix_rows();
  const int64_t end = prefix + tokens;
  const int64_t unseen = window > 0 ? std::max<int64_t>(0, tokens - window) : 0;
  const TensorView keys = sequence.keys(layer, end);
  const TensorView values = sequence.values(layer, end);
  if (prefix == 0 || unseen == 0)
    return {keys.rows(unseen, end).raw(), values.rows(unseen, end).raw(), end - unseen};
  const auto join = [&](const TensorView& rows) {
    Tensor& seen = joined.emplace_back(Shape{end - unseen, rows.dim(1)}, rows.dtype());
    copy_rows(rows.rows(0, prefix), seen.view().rows(0, prefix));
    copy_rows(rows.rows(prefix + unseen, end), seen.view().rows(prefix, end - unseen));
    return seen.view().raw();
  };
  const void* k = join(keys);
  const void* v = join(values);
  return {k, v, end - unseen};
}

}  // namespace

KvLayout kv_layout(const models::Model& model) {
  const models::ModelConfig& config = model.config();
  KvLayout layout;
  layout.num_layers = config.num_layers;
  layout.dtype = model.compute_dtype();
  for (int layer = 0; layer < config.num_layers; ++layer)
    layout.attention.push_back(model.attention_shape(layer));
  return layout;
}

TensorView SequenceKv::view(int layer, int which, int64_t rows) const {
  SHARDTUNE_ASSERT(rows <= capacity_ && layer < layout_.num_layers);
  const int64_t row_bytes = layout_.row_features() * size_of(layout_.dtype);
  const int64_t offset = (layer * int64_t{2} + which) * capacity_ * row_bytes;
  return TensorView(static_cast<void*>(bytes_of(buffer_.view()) + offset), layout_.dtype,
                    Shape{rows, layout_.row_features()});
}

void SequenceKv::reserve(int64_t tokens) {
  tokens += num_prefix_rows_;
  if (tokens <= capacity_)
    return;
  // A quarter more than asked for keeps the number of copies logarithmic in the length.
  const int64_t wanted = std::max(tokens, capacity_ + capacity_ / 4);
  SequenceKv grown(layout_);
  grown.capacity_ = round_up(wanted, kBlockTokens);
  grown.buffer_ =
      Tensor(Shape{layout_.num_layers, 2, grown.capacity_, layout_.row_features()}, layout_.dtype);
  const int64_t held = num_prefix_rows_ + length_;
  for (int layer = 0; held > 0 && layer < layout_.num_layers; ++layer) {
    copy_rows(keys(layer, held), grown.keys(layer, held));
    copy_rows(values(layer, held), grown.values(layer, held));
  }
  buffer_ = std::move(grown.buffer_);
  capacity_ = grown.capacity_;
}

void SequenceKv::append(int layer, const TensorView& k, const TensorView& v) {
  const int64_t begin = num_prefix_rows_ + length_;
  const int64_t end = begin + k.dim(0);
  SHARDTUNE_ASSERT(end <= capacity_);
  copy_rows(k, keys(layer, end).rows(begin, end));
  copy_rows(v, values(layer, end).rows(begin, end));
}

void SequenceKv::set_prefix(int layer, const TensorView& k, const TensorView& v) {
  if (length_ > 0)
    return;  // it stands there since the first tokens
  const int64_t rows = k.dim(0);
  if (num_prefix_rows_ != rows) {
    // Room for the tokens that were asked for and the rows before them; nothing to keep yet.
    const int64_t tokens = capacity_;
    num_prefix_rows_ = 0;
    reserve(tokens + rows);
    num_prefix_rows_ = rows;
  }
  copy_rows(k, keys(layer, rows));
  copy_rows(v, values(layer, rows));
}

void SequenceKv::truncate(int64_t tokens) {
  SHARDTUNE_ASSERT(tokens >= 0 && tokens <= num_tokens());
  if (tokens == 0)
    num_virtual_tokens_ = 0;  // they come again with the next first token
  length_ = num_virtual_tokens_ + tokens;
}

void BatchKvCache::begin(std::span<SequenceKv* const> sequences,
                         std::span<const int32_t> sample_offsets) {
  SHARDTUNE_ASSERT(sample_offsets.size() == sequences.size() + 1);
  sequences_ = sequences;
  sample_offsets_ = sample_offsets;
  for (size_t s = 0; s < sequences.size(); ++s)
    sequences[s]->reserve(sequences[s]->length() + new_tokens(s));
}

void BatchKvCache::end() {
  for (size_t s = 0; s < sequences_.size(); ++s)
    sequences_[s]->advance(new_tokens(s));
  sequences_ = {};
  sample_offsets_ = {};
}

int64_t BatchKvCache::new_tokens(size_t sample) const {
  return int64_t{sample_offsets_[sample + 1]} - sample_offsets_[sample];
}

void BatchKvCache::set_prefix(int layer, const TensorView& prefix_k, const TensorView& prefix_v) {
  for (SequenceKv* sequence : sequences_)
    sequence->set_prefix(layer, prefix_k, prefix_v);
}

void BatchKvCache::add_virtual_tokens(int64_t count, std::span<const int32_t> sample_offsets) {
  SHARDTUNE_ASSERT(sample_offsets.size() == sequences_.size() + 1);
  wide_offsets_.assign(sample_offsets.begin(), sample_offsets.end());
  sample_offsets_ = wide_offsets_;
  for (size_t s = 0; s < sequences_.size(); ++s) {
    if (sequences_[s]->length() == 0)
      sequences_[s]->set_num_virtual_tokens(count);
    sequences_[s]->reserve(sequences_[s]->length() + new_tokens(s));
  }
}

int64_t BatchKvCache::past_length(int64_t sample) const {
  return sequences_[static_cast<size_t>(sample)]->length();
}

void BatchKvCache::attend(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                          const TensorView& out) {
  SHARDTUNE_ASSERT(!sequences_.empty() && q.dim(0) == sample_offsets_.back());
  bool has_single_tokens = false;
  for (size_t s = 0; s < sequences_.size(); ++s) {
    const int64_t begin = sample_offsets_[s];
    const int64_t end = sample_offsets_[s + 1];
    sequences_[s]->append(layer, k.rows(begin, end), v.rows(begin, end));
    if (new_tokens(s) > 1)
      attend_chunk(layer, s, q.rows(begin, end), out.rows(begin, end));
    else
      has_single_tokens = true;
  }
  if (has_single_tokens)
    attend_single_tokens(layer, q, out);
}

// New tokens of one sequence see its cached rows as a prefix, then each other causally. One call
// per sequence, so that its bits do not depend on who else is in the batch.
void BatchKvCache::attend_chunk(int layer, size_t sample, const TensorView& q,
                                const TensorView& out) const {
  const SequenceKv& sequence = *sequences_[sample];
  const int64_t tokens = sequence.length() + q.dim(0);
  const kernels::AttentionShape& shape = layout_.attention[static_cast<size_t>(layer)];
  if (shape.window > 0 && shape.window < tokens && sequence.length() > 0)
    return attend_chunk_in_window(layer, sample, q, out);
  const int64_t past = sequence.num_prefix_rows() + sequence.length();
  const int64_t end = past + q.dim(0);
  const int32_t offsets[2] = {0, narrow<int32_t>(q.dim(0))};
  kernels::AttentionForward args;
  args.shape = shape;
  args.sample_offsets = offsets;
  args.q = q;
  args.k = sequence.keys(layer, end).rows(past, end);
  args.v = sequence.values(layer, end).rows(past, end);
  if (past > 0) {
    args.prefix_k = sequence.keys(layer, past);
    args.prefix_v = sequence.values(layer, past);
  }
  args.out = out;
  kernels::attention(args);
}

// A prefix is seen by all tokens, whatever the window: so each token of a chunk that is not the
// first looks back on its own.
void BatchKvCache::attend_chunk_in_window(int layer, size_t sample, const TensorView& q,
                                          const TensorView& out) const {
  const SequenceKv& sequence = *sequences_[sample];
  const kernels::AttentionShape& shape = layout_.attention[static_cast<size_t>(layer)];
  std::vector<kernels::CachedSequence> tokens;
  std::vector<Tensor> joined;
  for (int64_t i = 0; i < q.dim(0); ++i)
    tokens.push_back(seen_rows(sequence, layer, sequence.length() + i + 1, shape.window, joined));
  kernels::attention_decode(shape, tokens, q, out);
}

// Decode steps: maximal runs of samples with one new token go through one call each.
void BatchKvCache::attend_single_tokens(int layer, const TensorView& q,
                                        const TensorView& out) const {
  const kernels::AttentionShape& shape = layout_.attention[static_cast<size_t>(layer)];
  std::vector<kernels::CachedSequence> run;
  std::vector<Tensor> joined;
  for (size_t s = 0; s < sequences_.size(); ++s) {
    if (new_tokens(s) != 1)
      continue;
    run.push_back(
        seen_rows(*sequences_[s], layer, sequences_[s]->length() + 1, shape.window, joined));
    if (s + 1 < sequences_.size() && new_tokens(s + 1) == 1)
      continue;
    const int64_t end = sample_offsets_[s + 1];
    const int64_t begin = end - static_cast<int64_t>(run.size());
    kernels::attention_decode(shape, run, q.rows(begin, end), out.rows(begin, end));
    run.clear();
    joined.clear();
  }
}

}  // namespace shardtune::inference
