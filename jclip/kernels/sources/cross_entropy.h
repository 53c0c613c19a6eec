// Cross-entropy of rows of C scores, a row per OpenMP iteration; the probabilities are kept for the gradient. Where exp
// comes near its smallest numbers, glibc's vectors fall back to one value at a time: what is below 1e-38 is taken as that.
#pragma once
#include <omp.h>
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace jclip {

constexpr float LEAST = -87.0f;

inline void cross_entropy_forward(const float* scores, const int* labels, float* losses, float* probabilities,
                                  int64_t count, int64_t C) {
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < count / C; row++) {
        const float* in = scores + row * C;
        float *p = probabilities + row * C, largest = in[0];
        double sum = 0.0;
        for (int64_t i = 1; i < C; i++) largest = std::max(largest, in[i]);
        for (int64_t i = 0; i < C; i++) p[i] = std::exp(std::max(in[i] - largest, LEAST));
        for (int64_t i = 0; i < C; i++) sum += p[i];
        const float share = float(1.0 / sum);
        for (int64_t i = 0; i < C; i++) p[i] *= share;
        losses[row] = float(std::log(sum) - (double(in[labels[row]]) - largest));
    }
}

// dx = g (p - one-hot)
inline void cross_entropy_backward(const float* probabilities, const int* labels, const float* grad, float* grad_scores,
                                   int64_t count, int64_t C) {
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < count / C; row++) {
        const float *p = probabilities + row * C, g = grad[row];
        float* out = grad_scores + row * C;
        for (int64_t i = 0; i < C; i++) out[i] = g * p[i];
        out[labels[row]] = g * (p[labels[row]] - 1.0f);
    }
}

}  // namespace jclip
