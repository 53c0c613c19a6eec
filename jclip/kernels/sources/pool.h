// Mean of `size` x `size` cells of channels-last maps; rows and columns that fill no cell are dropped.
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

}  // namespace jclip
