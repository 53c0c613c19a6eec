// What the first token of each sample takes from all of them: of a last block's output only that is read.
#pragma once
#include "attention.h"

namespace jclip {

// q (B, D), kv (B, N, 2D): k and v side by side → out (B, D)
template <class X>
void class_attention_forward(const float* q, const X* kv, float* out, int64_t B, int64_t N, int64_t D, double heads) {
    const int64_t H = int64_t(heads), d = D / H;
    const float scale = 1.0f / std::sqrt(float(d));
    #pragma omp parallel
    {
        std::vector<float> weights(H * N);
        #pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++) {
            const float* own = q + b * D;
            float* to = out + b * D;
            for (int64_t j = 0; j < N; j++) {
                const X* k = kv + (b * N + j) * 2 * D;
                for (int64_t h = 0; h < H; h++) {
                    float dot = 0.0f;
                    for (int64_t c = h * d; c < (h + 1) * d; c++) dot += own[c] * widen(k[c]);
                    weights[h * N + j] = dot;
                }
            }
            for (int64_t h = 0; h < H; h++) softmax(&weights[h * N], &weights[h * N], N, N, scale);
            std::fill(to, to + D, 0.0f);
            for (int64_t j = 0; j < N; j++) {
                const X* v = kv + (b * N + j) * 2 * D + D;
                for (int64_t h = 0; h < H; h++) {
                    const float weight = weights[h * N + j];
                    for (int64_t c = h * d; c < (h + 1) * d; c++) to[c] += weight * widen(v[c]);
                }
            }
        }
    }
}

}  // namespace jclip
