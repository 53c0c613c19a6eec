// A step of AdamW on one parameter: everything is read once and written once, the parameter past the caches.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace jclip {

const int64_t ADAMW_BLOCK = 1024;

inline void stream_out(const float* from, float* to, int64_t count) {
#if defined(__AVX__)
    if (reinterpret_cast<uintptr_t>(to) % 32 == 0 && count % 8 == 0) {
        for (int64_t i = 0; i < count; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
        return;
    }
#endif
    std::memcpy(to, from, size_t(count) * sizeof(float));
}

// m' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2) g^2, p' = keep p - step m' / (sqrt(v') root + eps), where keep = 1 - lr decay,
// step = lr / (1 - b1^t) and root = 1 / sqrt(1 - b2^t). The moments m and v become m' and v' where they lie.
inline void adamw_forward(const float* p, const float* m, const float* v, const float* g, float* new_p, int64_t count,
                          double b1, double b2, double keep, double step, double root, double eps) {
    const float f1 = float(b1), f2 = float(b2), r1 = float(1 - b1), r2 = float(1 - b2);
    const float kept = float(keep), rate = float(step), factor = float(root), least = float(eps);
    #pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < count; first += ADAMW_BLOCK) {
        const int64_t n = std::min(ADAMW_BLOCK, count - first);
        const float *__restrict__ p0 = p + first, *__restrict__ g0 = g + first;
        float *__restrict__ m1 = const_cast<float*>(m) + first, *__restrict__ v1 = const_cast<float*>(v) + first;
        alignas(64) float p1[ADAMW_BLOCK];
        for (int64_t i = 0; i < n; i++) {
            m1[i] = f1 * m1[i] + r1 * g0[i];
            v1[i] = f2 * v1[i] + r2 * g0[i] * g0[i];
            p1[i] = kept * p0[i] - rate * m1[i] / (std::sqrt(v1[i]) * factor + least);
        }
        stream_out(p1, new_p + first, n);
    }
#if defined(__AVX__)
    _mm_sfence();
#endif
}

}  // namespace jclip
