// Photos to what a convolution whose stride is its kernel multiplies: a row of numbers for each square of pixels.
#pragma once
#include "onednn.h"

namespace jclip {

// images (B, C, H, W) → cells (B, H/p * W/p, C p p), float or bfloat16
template <class Y>
void cells_forward(const float* images, Y* cells, int64_t B, int64_t C, int64_t H, int64_t W, double patch) {
    const int64_t p = int64_t(patch), down = H / p, across = W / p;
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < B * down; row++) {
        const int64_t b = row / down, y = row % down * p;
        for (int64_t x = 0; x < across; x++) {
            Y* to = cells + (row * across + x) * C * p * p;
            for (int64_t c = 0; c < C; c++)
                for (int64_t i = 0; i < p; i++, to += p) {
                    const float* from = images + ((b * C + c) * H + y + i) * W + x * p;
                    for (int64_t j = 0; j < p; j++) narrow(from[j], to[j]);
                }
        }
    }
}

}  // namespace jclip
