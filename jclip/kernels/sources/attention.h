// Attention over packed q, k, v of shape (B, N, 3D), head by head, one head of one sample per OpenMP iteration.
#pragma once
#include <dnnl.h>
#include "rotation.h"

namespace jclip {

// One row of scores, times `scale`, to weights that sum to one; those behind `seen` are zero.
template <class Y>
inline void softmax(float* row, Y* weights, int64_t N, int64_t seen, float scale) {
    float largest = row[0], sum = 0.0f;
    for (int64_t j = 1; j < seen; j++) largest = row[j] > largest ? row[j] : largest;
    for (int64_t j = 0; j < seen; j++) row[j] = std::exp((row[j] - largest) * scale);
    for (int64_t j = 0; j < seen; j++) sum += row[j];
    const float factor = 1.0f / sum;
    for (int64_t j = 0; j < seen; j++) narrow(row[j] * factor, weights[j]);
    for (int64_t j = seen; j < N; j++) narrow(0.0f, weights[j]);
}

// scores (N, N) = softmax(q k^T / sqrt(d)), row by row; entries behind the diagonal are zero if causal.
inline void attention_weights(const float* q, const float* k, float* scores, int64_t N, int64_t d, int64_t stride,
                              bool causal) {
    dnnl_sgemm('N', 'T', N, N, d, 1.0f, q, stride, k, stride, 0.0f, scores, N);
    const float scale = 1.0f / std::sqrt(float(d));
    for (int64_t i = 0; i < N; i++) softmax(scores + i * N, scores + i * N, N, causal ? i + 1 : N, scale);
}

// With cosines and sines (T, d/2) q and k are turned first, as by rotation_forward.
inline void attention_forward(const float* qkv, const float* cosines, const float* sines, float* out, int64_t B, int64_t N,
                              int64_t width, int64_t T, double heads, double causal) {
    const int64_t H = int64_t(heads), D = width / 3, d = D / H;
    const Angles by{cosines, sines, T, d / 2, 1.0f};
    #pragma omp parallel
    {
        HeadRows<float> rows(by, N, width, d);
        std::vector<float> scores(N * N);
        #pragma omp for schedule(static)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H;
            const float* own = qkv + b * N * width + h * d;
            rows.take(own, D);
            attention_weights(rows.q, rows.k, scores.data(), N, d, rows.stride, causal != 0);
            dnnl_sgemm('N', 'N', N, d, N, 1.0f, scores.data(), N, own + 2 * D, width, 0.0f, out + b * N * D + h * d, D);
        }
    }
}

inline void attention_backward(const float* qkv, const float* grad, float* grad_qkv, int64_t B, int64_t N,
                               int64_t width, double heads, double causal) {
    const int64_t H = int64_t(heads), D = width / 3, d = D / H;
    const float scale = 1.0f / std::sqrt(float(d));
    #pragma omp parallel
    {
        std::vector<float> weights(N * N), inner(N * N);
        float *w = weights.data(), *g = inner.data();
        #pragma omp for schedule(static)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H;
            const float *q = qkv + b * N * width + h * d, *k = q + D, *v = k + D, *go = grad + b * N * D + h * d;
            float *gq = grad_qkv + b * N * width + h * d, *gk = gq + D, *gv = gk + D;
            attention_weights(q, k, w, N, d, width, causal != 0);
            dnnl_sgemm('T', 'N', N, d, N, 1.0f, w, N, go, D, 0.0f, gv, width);
            dnnl_sgemm('N', 'T', N, N, d, 1.0f, go, D, v, width, 0.0f, g, N);
            for (int64_t i = 0; i < N; i++) {
                float *wi = w + i * N, *gi = g + i * N, dot = 0.0f;
                for (int64_t j = 0; j < N; j++) dot += wi[j] * gi[j];
                for (int64_t j = 0; j < N; j++) gi[j] = wi[j] * (gi[j] - dot);
            }
            dnnl_sgemm('N', 'N', N, d, N, scale, g, N, k, width, 0.0f, gq, width);
            dnnl_sgemm('T', 'N', N, d, N, scale, g, N, q, width, 0.0f, gk, width);
        }
    }
}

}  // namespace jclip
