// Rotary positions: pairs of neighbouring numbers of q and k, turned by the angles of their token.
#pragma once
#include <algorithm>
#include "onednn.h"

namespace jclip {

// qkv (B, N, 3D), cosines and sines (T, d/2) of the first T tokens → out (B, N, 3D): of these q and k are turned, by the
// opposite angles with direction -1; what comes after them, and v, stays as it is. All heads turn alike.
template <class X>
void rotation_forward(const X* qkv, const float* cosines, const float* sines, X* out, int64_t rows, int64_t N, int64_t width,
                      int64_t T, int64_t half, double direction) {
    const int64_t turned = width / 3 * 2 / (2 * half);  // heads of q and k together
    const float sign = float(direction);
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const X* from = qkv + row * width;
        X* to = out + row * width;
        const int64_t token = row % N;
        int64_t done = 0;
        if (token < T) {
            const float *c = cosines + token * half, *s = sines + token * half;
            for (int64_t h = 0; h < turned; h++, done += 2 * half)
                for (int64_t i = 0; i < half; i++) {
                    const float a = widen(from[done + 2 * i]), b = widen(from[done + 2 * i + 1]), sine = sign * s[i];
                    narrow(a * c[i] - b * sine, to[done + 2 * i]);
                    narrow(b * c[i] + a * sine, to[done + 2 * i + 1]);
                }
        }
        std::copy(from + done, from + width, to + done);
    }
}

}  // namespace jclip
