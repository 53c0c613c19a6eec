// Mean of `size` x `size` cells of channels-last maps, and its gradient; rows and columns that fill no cell are dropped.
#pragma once
#include "onednn.h"

namespace jclip {

template <class X>
void pool_forward(const X* x, X* y, int64_t B, int64_t H, int64_t W, int64_t C, double size) {
    const int64_t s = int64_t(size), height = H / s, width = W / s;
    #pragma omp parallel
    {
        std::vector<float> sum(C);
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < B * height; row++) {
            const X* from = x + (row / height * H + row % height * s) * W * C;
            for (int64_t column = 0; column < width; column++) {
                for (int64_t c = 0; c < C; c++) sum[c] = 0.0f;
                for (int64_t i = 0; i < s; i++)
                    for (int64_t j = 0; j < s; j++)
                        for (int64_t c = 0; c < C; c++) sum[c] += widen(from[(i * W + column * s + j) * C + c]);
                X* to = y + (row * width + column) * C;
                for (int64_t c = 0; c < C; c++) narrow(sum[c] / (s * s), to[c]);
            }
        }
    }
}

// Each cell's share of what flows to its mean: the sum of the gradients of the pool's readers, over size x size.
template <class X>
void pool_backward(const X* g0, const void* g1, const void* g2, X* grad_x, int64_t B, int64_t H, int64_t W, int64_t C,
                   double size) {
    const int64_t s = int64_t(size), height = H / s, width = W / s;
    const X* grads[3] = {g0, static_cast<const X*>(g1), static_cast<const X*>(g2)};
    const float share = 1.0f / float(s * s);
    #pragma omp parallel
    {
        std::vector<float> sum(C);
        #pragma omp for schedule(static)
        for (int64_t row = 0; row < B * H; row++) {
            const int64_t b = row / H, i = row % H / s;
            X* to = grad_x + row * W * C;
            for (int64_t column = 0; column < W; column++, to += C) {
                for (int64_t c = 0; c < C; c++) sum[c] = 0.0f;
                const bool inside = i < height && column / s < width;
                for (const X* grad : grads) {
                    if (!grad || !inside) continue;
                    const X* from = grad + ((b * height + i) * width + column / s) * C;
                    for (int64_t c = 0; c < C; c++) sum[c] += widen(from[c]);
                }
                for (int64_t c = 0; c < C; c++) narrow(sum[c] * share, to[c]);
            }
        }
    }
}

}  // namespace jclip
