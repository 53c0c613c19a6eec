// What one query, shared by all samples, takes from the tokens of each. Keys and values are never made: with q_h of a head and
// W_k, W_v of its keys and values, q_h (W_k x) = (W_k^T q_h) x, and what the shares p_n mix is W_v sum_n p_n x_n + b_v.
#pragma once
#include "attention.h"
#include "int8_weight.h"
#include "pack.h"

namespace jclip {

// A weight (N, K) in any of its forms as float: itself, or written to `own`. R: rows of a block, 0 where there are none.
inline const float* widened(const float* weight, int64_t, int64_t, int64_t, std::unique_ptr<float[]>&) { return weight; }

inline const float* widened(const int8_t* weight, int64_t N, int64_t K, int64_t R, std::unique_ptr<float[]>& own) {
    own.reset(new float[N * K]);
    #pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < N / R; block++) {
        const Int8Block from(weight, block, R, K);
        std::vector<float> scales(R);
        std::vector<int32_t> sums(R);
        from.read(scales.data(), sums.data());
        for (int64_t n = 0; n < R; n++)
            for (int64_t k = 0; k < K; k++) own[(block * R + n) * K + k] = scales[n] * from.at(n, k);
    }
    return own.get();
}

template <class W>
const float* widened(const W* weight, int64_t N, int64_t K, int64_t R, std::unique_ptr<float[]>& own) {
    own.reset(new float[N * K]);
    const int64_t rows = R ? R : 1, columns = R ? 2 : K;  // of what lies together
    #pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < N / rows; block++) {
        const W* from = weight + block * rows * K;
        for (int64_t k = 0; k < K; k += columns)
            for (int64_t n = 0; n < rows; n++, from += columns)
                for (int64_t i = 0; i < columns; i++) own[(block * rows + n) * K + k + i] = widen(from[i]);
    }
    return own.get();
}

// q (D), x (B, N, D), weight (2D, D) and bias (2D) of keys and values → out (B, D)
template <class W>
void probe_attention_forward(const float* q, const float* x, const W* weight, const float* bias, float* out, int64_t B,
                             int64_t N, int64_t D, int64_t R, double heads) {
    const int64_t H = int64_t(heads), d = D / H;
    const float scale = 1.0f / std::sqrt(float(d));
    std::unique_ptr<float[]> own;
    const float* wide = widened(weight, 2 * D, D, R, own);
    std::vector<float> seen(H * D), mixed(B * H * D);
    #pragma omp parallel
    {
        #pragma omp for schedule(static)
        for (int64_t h = 0; h < H; h++)
            dnnl_sgemm('N', 'N', 1, D, d, 1.0f, q + h * d, d, wide + h * d * D, D, 0.0f, &seen[h * D], D);
        std::vector<float> shares(H * N);
        #pragma omp for schedule(static)
        for (int64_t b = 0; b < B; b++) {
            dnnl_sgemm('N', 'T', H, N, D, 1.0f, seen.data(), D, x + b * N * D, D, 0.0f, shares.data(), N);
            for (int64_t h = 0; h < H; h++) softmax(&shares[h * N], &shares[h * N], N, N, scale);
            dnnl_sgemm('N', 'N', H, D, N, 1.0f, shares.data(), N, x + b * N * D, D, 0.0f, &mixed[b * H * D], D);
        }
        #pragma omp for schedule(static)
        for (int64_t h = 0; h < H; h++) {
            const float *values = wide + (D + h * d) * D, *plus = bias + D + h * d;
            dnnl_sgemm('N', 'T', B, d, D, 1.0f, &mixed[h * D], H * D, values, D, 0.0f, out + h * d, D);
            for (int64_t b = 0; b < B; b++)
                for (int64_t i = 0; i < d; i++) out[b * D + h * d + i] += plus[i];
        }
    }
}

}  // namespace jclip
