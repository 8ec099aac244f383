// LoRA on the embedding and the head. A row of the embedding is changed by B A[:, id]; the logits
// by B (A hidden), for which the product with A is put behind the hidden state as more columns and
// B is cut as the head's chunks are (Model::add_head_columns).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "adapters/target_modules.h"
#include "autograd/tape.h"

namespace shardtune::adapters {

struct LoraTables {
  TargetTables paths;
  // Of the embedding: lora_embedding_A [r,V] and lora_embedding_B [H,r], in a unit before the
  // layers.
  UnitId front_unit{};
  ParameterId embedding_A = kNoParameter;
  ParameterId embedding_B = kNoParameter;
  float embedding_scale = 1.0f;
  // Of the head: lora_A [r,H] in the final unit, lora_B [V,r] in parts, by chunk.
  ParameterId head_A = kNoParameter;
  std::vector<ParameterId> head_B;
  float head_scale = 1.0f;
};

/// x [T,H] f32 + scale * A[:, ids]^T B^T. Gradients of A's columns are summed in order of tokens.
autograd::Variable update_embedding(autograd::Tape& tape, const autograd::Variable& x,
                                    std::span<const int32_t> ids, const LoraTables& tables);

/// rows [end-begin,H] of the embedding += scale * A[:, begin..end)^T B^T.
void merge_embedding_rows(const LoraTables& tables, const models::Model& model, int64_t begin,
                          int64_t end, const TensorView& rows);
/// rows [end-begin,H] of the head += scale * B[begin..end) A.
void merge_head_rows(const LoraTables& tables, const models::Model& model, int64_t begin,
                     int64_t end, const TensorView& rows);

/// Adapter::is_copy_of_base.
bool is_copy_of_table(const LoraTables& tables, const models::Model& model,
                      const io::TensorInfo& tensor, const io::TensorSource& file);

}  // namespace shardtune::adapters
