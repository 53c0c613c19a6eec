// LayerNorm over rows of D values, a row per OpenMP iteration, the variance from centred values.
#pragma once
#include <omp.h>
#include "onednn.h"

namespace jclip {

inline void moments(const float* x, int64_t D, double eps, float& mean, float& factor) {
    float sum = 0.0f, squares = 0.0f;
    for (int64_t i = 0; i < D; i++) sum += x[i];
    mean = sum / D;
    for (int64_t i = 0; i < D; i++) squares += (x[i] - mean) * (x[i] - mean);
    factor = 1.0f / std::sqrt(squares / D + float(eps));
}

// y: float or bfloat16
template <class Y>
void layer_norm_forward(const float* x, const float* weight, const float* bias, Y* y, int64_t count, int64_t D,
                        double eps) {
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < count / D; row++) {
        const float* in = x + row * D;
        Y* out = y + row * D;
        float mean, factor;
        moments(in, D, eps, mean, factor);
        #pragma omp simd
        for (int64_t i = 0; i < D; i++) narrow((in[i] - mean) * factor * weight[i] + bias[i], out[i]);
    }
}

// dx = f (h - mean(h) - n mean(h n)) with n = (x - mean) f and h = g w; dw = sum g n, db = sum g, thread by thread in order.
inline void layer_norm_backward(const float* x, const float* weight, const float* grad, float* grad_x,
                                float* grad_weight, float* grad_bias, int64_t count, int64_t D, double eps) {
    const int threads = omp_get_max_threads();
    std::vector<float> sums(size_t(threads) * 2 * D, 0.0f);
    #pragma omp parallel num_threads(threads)
    {
        float *dw = sums.data() + size_t(omp_get_thread_num()) * 2 * D, *db = dw + D;
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < count / D; row++) {
            const float *in = x + row * D, *g = grad + row * D;
            float *out = grad_x + row * D, mean, factor, h_sum = 0.0f, hn_sum = 0.0f;
            moments(in, D, eps, mean, factor);
            for (int64_t i = 0; i < D; i++) {
                const float n = (in[i] - mean) * factor, h = g[i] * weight[i];
                h_sum += h;
                hn_sum += h * n;
                dw[i] += g[i] * n;
                db[i] += g[i];
            }
            h_sum /= D;
            hn_sum /= D;
            for (int64_t i = 0; i < D; i++) {
                const float n = (in[i] - mean) * factor;
                out[i] = factor * (g[i] * weight[i] - h_sum - n * hn_sum);
            }
        }
    }
    for (int64_t i = 0; i < D; i++) {
        float dw = 0.0f, db = 0.0f;
        for (int t = 0; t < threads; t++) {
            dw += sums[size_t(t) * 2 * D + i];
            db += sums[size_t(t) * 2 * D + D + i];
        }
        grad_weight[i] = dw;
        grad_bias[i] = db;
    }
}

}  // namespace jclip
