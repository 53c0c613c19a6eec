// Attention within sequences of unequal lengths that lie one behind the other, no token of padding among them.
#pragma once
#include "attention_masked.h"
#include "rows.h"

namespace jclip {

// qkv (T, 3D); moved (rows, 3D): what a token's place adds to it; starts (B + 1,), places (T,), keep (T,) → out (T, D).
inline void packed_attention_forward(const float* qkv, const float* moved, const int32_t* starts, const int32_t* places,
                                     const float* keep, float* out, int64_t B, int64_t rows, int64_t width, double heads,
                                     double rate, double seed, double first) {
    sequences_forward(qkv, moved, {starts, places, keep, rows}, out, B, width, int64_t(heads), rate, seed, int64_t(first));
}

inline void packed_attention_backward(const float* qkv, const float* moved, const int32_t* starts, const int32_t* places,
                                      const float* keep, const float* grad, float* grad_qkv, float* grad_moved, int64_t B,
                                      int64_t rows, int64_t width, double heads, double rate, double seed,
                                      double first) {
    sequences_backward(qkv, moved, {starts, places, keep, rows}, grad, grad_qkv, B, width, int64_t(heads), rate, seed,
                       int64_t(first));
    rows_backward(grad_qkv, places, grad_moved, starts[B], rows, width);
}

}  // namespace jclip
