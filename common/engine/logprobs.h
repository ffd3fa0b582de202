/* Logprobs of one position, made of its row of raw logits: docs/numerics.md "Logprobs".
 *
 * Pure, on any thread whose denormals are flushed (bt_kernels_thread_init). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/sampling.h"
#include "kernels/kernels.h"

/* Of `token` (0 .. n_vocab - 1) and of the n_top likeliest (at most BT_TOP_LOGPROBS; all, where the
 * vocabulary is smaller). The logits must be finite. */
void bt_logprobs_make(const struct bt_kernels *kernels, const float *logits, uint32_t n_vocab,
                      int32_t token, uint32_t n_top, struct bt_logprobs *out);
