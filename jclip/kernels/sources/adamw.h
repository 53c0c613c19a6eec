// A step of AdamW in one pass over parameter, gradient and moments.
#pragma once
#include <cmath>
#include <cstdint>

namespace jclip {

// The gradient is g times `scale`; `rate`: lr / (1 - b1^t); `keep`: 1 - lr * decay; `root`: sqrt(1 - b2^t).
inline void adamw_step(const float* p, const float* g, const float* m, const float* v, const float* scale, float* to_p,
                       float* to_m, float* to_v, int64_t count, double b1, double b2, double rate, double keep, double root,
                       double eps) {
    const float factor = scale ? scale[0] : 1.0f, own = float(1 - b1), square = float(1 - b2), inverse = float(1 / root);
    const float first = float(b1), second = float(b2), step = float(rate), kept = float(keep), least = float(eps);
    #pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        const float gi = g[i] * factor, mi = first * m[i] + own * gi, vi = second * v[i] + square * gi * gi;
        to_m[i] = mi;
        to_v[i] = vi;
        to_p[i] = kept * p[i] - step * mi / (std::sqrt(vi) * inverse + least);
    }
}

}  // namespace jclip
