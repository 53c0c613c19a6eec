// Attention with a key mask and dropout of its weights, one head of one sample per OpenMP iteration. Masked keys are
// neither multiplied nor drawn: those that are kept are laid side by side first.
#pragma once
#include "attention.h"
#include "dropout.h"

namespace jclip {

// Kept keys of one sample: their places, and one head's keys and values.
struct KeptKeys {
    std::vector<int64_t> places;
    std::vector<float> keys, values;

    // keep (N,) 0 or 1; k, v: rows `stride` apart, d numbers each.
    void gather(const float* keep, const float* k, const float* v, int64_t N, int64_t d, int64_t stride) {
        places.clear();
        keys.clear();
        values.clear();
        for (int64_t j = 0; j < N; j++) {
            if (keep[j] == 0.0f) continue;
            places.push_back(j);
            keys.insert(keys.end(), k + j * stride, k + j * stride + d);
            values.insert(values.end(), v + j * stride, v + j * stride + d);
        }
    }
};

// weights (N, M) = softmax(q k^T / sqrt(d)) over the kept keys.
inline void kept_weights(const float* q, const KeptKeys& kept, float* weights, int64_t N, int64_t M, int64_t d,
                         int64_t stride) {
    dnnl_sgemm('N', 'T', N, M, d, 1.0f, q, stride, kept.keys.data(), d, 0.0f, weights, M);
    const float scale = 1.0f / std::sqrt(float(d));
    for (int64_t i = 0; i < N; i++) softmax(weights + i * M, weights + i * M, M, M, scale);
}

// Each weight (head, i, j) is dropped by its place in the whole (B H, N, N) table, whatever is masked.
inline void drop(const float* weights, float* to, const KeptKeys& kept, const Dropout& dropout, int64_t head,
                 int64_t N, int64_t M) {
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < M; j++)
            to[i * M + j] = weights[i * M + j] * dropout((head * N + i) * N + kept.places[j]);
}

inline void attention_masked_forward(const float* qkv, const float* keep, float* out, int64_t B, int64_t N,
                                     int64_t width, double heads, double rate, double seed) {
    const int64_t H = int64_t(heads), D = width / 3, d = D / H;
    const Dropout dropout(rate, seed);
    #pragma omp parallel
    {
        KeptKeys kept;
        std::vector<float> weights(N * N);
        #pragma omp for schedule(static)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H;
            const float* q = qkv + b * N * width + h * d;
            float* o = out + b * N * D + h * d;
            kept.gather(keep + b * N, q + D, q + 2 * D, N, d, width);
            const int64_t M = kept.places.size();
            if (M == 0) {
                for (int64_t i = 0; i < N; i++) std::fill(o + i * D, o + i * D + d, 0.0f);
                continue;
            }
            kept_weights(q, kept, weights.data(), N, M, d, width);
            if (rate > 0) drop(weights.data(), weights.data(), kept, dropout, head, N, M);
            dnnl_sgemm('N', 'N', N, d, M, 1.0f, weights.data(), M, kept.values.data(), d, 0.0f, o, D);
        }
    }
}

// Rows of gradients of kept keys or values to their places, zeros to the others'.
inline void scatter(const std::vector<float>& rows, const KeptKeys& kept, float* to, int64_t N, int64_t d,
                    int64_t stride) {
    for (int64_t j = 0; j < N; j++) std::fill(to + j * stride, to + j * stride + d, 0.0f);
    for (size_t j = 0; j < kept.places.size(); j++)
        std::copy(rows.data() + j * d, rows.data() + (j + 1) * d, to + kept.places[j] * stride);
}

inline void attention_masked_backward(const float* qkv, const float* keep, const float* grad, float* grad_qkv, int64_t B,
                                      int64_t N, int64_t width, double heads, double rate, double seed) {
    const int64_t H = int64_t(heads), D = width / 3, d = D / H;
    const float scale = 1.0f / std::sqrt(float(d));
    const Dropout dropout(rate, seed);
    #pragma omp parallel
    {
        KeptKeys kept;
        std::vector<float> weights(N * N), dropped(rate > 0 ? N * N : 0), inner(N * N), rows(N * d);
        #pragma omp for schedule(static)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H;
            const float *q = qkv + b * N * width + h * d, *go = grad + b * N * D + h * d;
            float *gq = grad_qkv + b * N * width + h * d, *gk = gq + D, *gv = gk + D, *g = inner.data();
            kept.gather(keep + b * N, q + D, q + 2 * D, N, d, width);
            const int64_t M = kept.places.size();
            if (M == 0) {
                for (int64_t i = 0; i < N; i++) std::fill(gq + i * width, gq + i * width + d, 0.0f);
                scatter(rows, kept, gk, N, d, width);
                scatter(rows, kept, gv, N, d, width);
                continue;
            }
            float *w = weights.data(), *p = w;
            kept_weights(q, kept, w, N, M, d, width);
            if (rate > 0) drop(w, p = dropped.data(), kept, dropout, head, N, M);
            dnnl_sgemm('T', 'N', M, d, N, 1.0f, p, M, go, D, 0.0f, rows.data(), d);
            scatter(rows, kept, gv, N, d, width);
            dnnl_sgemm('N', 'T', N, M, d, 1.0f, go, D, kept.values.data(), d, 0.0f, g, M);
            for (int64_t i = 0; i < N; i++) {
                float *wi = w + i * M, *pi = p + i * M, *gi = g + i * M, dot = 0.0f;
                for (int64_t j = 0; j < M; j++) dot += pi[j] * gi[j];
                for (int64_t j = 0; j < M; j++) gi[j] = pi[j] * gi[j] - wi[j] * dot;
            }
            dnnl_sgemm('N', 'N', N, d, M, scale, g, M, kept.keys.data(), d, 0.0f, gq, width);
            dnnl_sgemm('T', 'N', M, d, N, scale, g, M, q, width, 0.0f, rows.data(), d);
            scatter(rows, kept, gk, N, d, width);
        }
    }
}

}  // namespace jclip
