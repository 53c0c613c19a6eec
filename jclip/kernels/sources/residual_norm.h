// LayerNorm(x + dropout(y + b)) over rows of D values, and its gradients, in one pass each.
#pragma once
#include "dropout.h"
#include "layer_norm.h"

namespace jclip {

// A row's x + dropout(y + b); which of y is dropped depends on the row's number `token`.
inline void add_dropped(const float* x, const float* y, const float* bias, float* to, int64_t D, const Dropout& dropout,
                        bool drops, int64_t token) {
    for (int64_t i = 0; i < D; i++) to[i] = y[i] + bias[i];
    if (drops) dropout.apply(to, to, D, token * D);
    for (int64_t i = 0; i < D; i++) to[i] += x[i];
}

inline void residual_norm_forward(const float* x, const float* y, const float* bias, const float* weight,
                                  const float* shift, const int32_t* tokens, float* out, int64_t rows, int64_t D,
                                  double eps, double rate, double seed) {
    const Dropout dropout(rate, seed);
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float *to = out + row * D, mean, factor;
        add_dropped(x + row * D, y + row * D, bias, to, D, dropout, rate > 0, tokens[row]);
        moments(to, D, eps, mean, factor);
        for (int64_t i = 0; i < D; i++) to[i] = (to[i] - mean) * factor * weight[i] + shift[i];
    }
}

// As `layer_norm_backward`, of the sum; what flows to y is dropped as y was. Sums of rows thread by thread in order.
inline void residual_norm_backward(const float* x, const float* y, const float* bias, const float* weight,
                                   const int32_t* tokens, const float* grad, float* grad_x, float* grad_y,
                                   float* grad_bias, float* grad_weight, float* grad_shift, int64_t rows, int64_t D,
                                   double eps, double rate, double seed) {
    const Dropout dropout(rate, seed);
    const int threads = omp_get_max_threads();
    std::vector<float> sums(size_t(threads) * 3 * D, 0.0f);
    #pragma omp parallel num_threads(threads)
    {
        float *db = sums.data() + size_t(omp_get_thread_num()) * 3 * D, *dw = db + D, *ds = dw + D;
        std::vector<float> sum(D);
        float* s = sum.data();
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            const float* g = grad + row * D;
            float *to_x = grad_x + row * D, *to_y = grad_y + row * D, mean, factor, h_sum = 0.0f, hn_sum = 0.0f;
            add_dropped(x + row * D, y + row * D, bias, s, D, dropout, rate > 0, tokens[row]);
            moments(s, D, eps, mean, factor);
            for (int64_t i = 0; i < D; i++) {
                const float n = (s[i] - mean) * factor, h = g[i] * weight[i];
                h_sum += h;
                hn_sum += h * n;
                dw[i] += g[i] * n;
                ds[i] += g[i];
            }
            h_sum /= D;
            hn_sum /= D;
            for (int64_t i = 0; i < D; i++) {
                const float n = (s[i] - mean) * factor;
                to_x[i] = factor * (g[i] * weight[i] - h_sum - n * hn_sum);
            }
            if (rate > 0) dropout.apply(to_x, to_y, D, int64_t(tokens[row]) * D);
            else std::copy(to_x, to_x + D, to_y);
            for (int64_t i = 0; i < D; i++) db[i] += to_y[i];
        }
    }
    float* to[3] = {grad_bias, grad_weight, grad_shift};
    for (int64_t i = 0; i < 3 * D; i++) {
        float sum = 0.0f;
        for (int t = 0; t < threads; t++) sum += sums[size_t(t) * 3 * D + i];
        to[i / D][i % D] = sum;
    }
}

}  // namespace jclip
