// Dropout by a hash of the place and a seed: nothing is kept for the backward pass, which draws the same.
#pragma once
#include <cstdint>

namespace jclip {

// The finaliser of SplitMix64 (Steele, Lea & Flood, 2014).
inline uint64_t mixed(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

inline void dropout_forward(const float* x, float* y, int64_t count, double rate, double seed) {
    const uint64_t first = mixed(uint64_t(seed) + 1), step = 0x9E3779B97F4A7C15u;
    const uint64_t limit = uint64_t(rate * 4294967296.0);
    const float factor = float(1.0 / (1.0 - rate));
    #pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) y[i] = (mixed(first + uint64_t(i) * step) >> 32) < limit ? 0.0f : x[i] * factor;
}

}  // namespace jclip
