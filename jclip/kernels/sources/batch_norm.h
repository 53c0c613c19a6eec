// Batch norm with the batch's own statistics over (B, C, S), S = H W; a channel per OpenMP iteration.
#pragma once
#include <cmath>
#include <cstdint>

namespace jclip {

// Sums over one channel: rows of S values in float32, added up in float64, so that large batches lose no digits.
template <class F>
inline double channel_sum(int64_t B, int64_t C, int64_t S, int64_t c, F term) {
    double total = 0.0;
    for (int64_t b = 0; b < B; b++) {
        const int64_t start = (b * C + c) * S;
        float row = 0.0f;
        for (int64_t i = start; i < start + S; i++) row += term(i);
        total += row;
    }
    return total;
}

inline void batch_norm_forward(const float* x, const float* weight, const float* bias, float* y, float* mean,
                               float* variance, int64_t B, int64_t C, int64_t S, double eps) {
    #pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < C; c++) {
        const float m = float(channel_sum(B, C, S, c, [=](int64_t i) { return x[i]; }) / (B * S));
        const double v = channel_sum(B, C, S, c, [=](int64_t i) { return (x[i] - m) * (x[i] - m); }) / (B * S);
        const float factor = float(weight[c] / std::sqrt(v + eps)), shift = bias[c];
        for (int64_t b = 0; b < B; b++) {
            const int64_t start = (b * C + c) * S;
            for (int64_t i = start; i < start + S; i++) y[i] = (x[i] - m) * factor + shift;
        }
        mean[c] = m;
        variance[c] = float(v);
    }
}

// dx = w f (g - mean(g) - n mean(g n)) with n = (x - mean) f and f = 1 / sqrt(variance + eps); dw = sum g n, db = sum g.
inline void batch_norm_backward(const float* x, const float* weight, const float* mean, const float* variance,
                                const float* grad, float* grad_x, float* grad_weight, float* grad_bias, int64_t B,
                                int64_t C, int64_t S, double eps) {
    #pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < C; c++) {
        const float m = mean[c], f = float(1.0 / std::sqrt(double(variance[c]) + eps));
        const double sum = channel_sum(B, C, S, c, [=](int64_t i) { return grad[i]; });
        const double inner = channel_sum(B, C, S, c, [=](int64_t i) { return grad[i] * (x[i] - m) * f; });
        const float a = float(sum / (B * S)), n = float(inner / (B * S)) * f, scale = weight[c] * f;
        for (int64_t b = 0; b < B; b++) {
            const int64_t start = (b * C + c) * S;
            for (int64_t i = start; i < start + S; i++) grad_x[i] = scale * (grad[i] - a - (x[i] - m) * n);
        }
        grad_weight[c] = float(inner);
        grad_bias[c] = float(sum);
    }
}

}  // namespace jclip
