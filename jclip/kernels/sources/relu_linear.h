// dropout(ReLU(x W^T + b)): ReLU within the product, dropout in place.
#pragma once
#include <omp.h>
#include "dropout.h"
#include "linear.h"

namespace jclip {

// Which of a row is dropped depends on the row's number among `tokens`.
inline void relu_linear_forward(const float* x, const float* weight, const float* bias, const int32_t* tokens, float* y,
                                int64_t rows, int64_t N, int64_t K, double rate, double seed, double half) {
    linear_forward(x, weight, bias, static_cast<const float*>(nullptr), y, rows * K, N, K, false, relu, half);
    if (rate <= 0) return;
    const Dropout dropout(rate, seed);
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) dropout.apply(y + row * N, y + row * N, N, int64_t(tokens[row]) * N);
}

// What flows to the product: g where y is positive, times 1 / (1 - rate); and its sums, the bias's. Nothing is drawn: what
// was dropped is nought in y.
inline void relu_linear_backward(const float* y, const float* grad, float* to, float* grad_bias, int64_t rows, int64_t N,
                                 double rate) {
    const float factor = float(1.0 / (1.0 - rate));
    const int threads = omp_get_max_threads();
    std::vector<float> sums(size_t(threads) * N, 0.0f);
    #pragma omp parallel num_threads(threads)
    {
        float* db = sums.data() + size_t(omp_get_thread_num()) * N;
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            const float *own = y + row * N, *g = grad + row * N;
            float* out = to + row * N;
            for (int64_t i = 0; i < N; i++) {
                out[i] = own[i] > 0.0f ? g[i] * factor : 0.0f;
                db[i] += out[i];
            }
        }
    }
    for (int64_t i = 0; i < N; i++) {
        float sum = 0.0f;
        for (int t = 0; t < threads; t++) sum += sums[size_t(t) * N + i];
        grad_bias[i] = sum;
    }
}

}  // namespace jclip
