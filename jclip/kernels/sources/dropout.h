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

// What an element is multiplied by: nought with probability `rate`, else 1 / (1 - rate).
struct Dropout {
    uint64_t first, limit;
    float factor;

    Dropout(double rate, double seed)
        : first(mixed(uint64_t(seed) + 1)), limit(uint64_t(rate * 4294967296.0)), factor(float(1.0 / (1.0 - rate))) {}

    float operator()(int64_t place) const {
        return (mixed(first + uint64_t(place) * 0x9E3779B97F4A7C15u) >> 32) < limit ? 0.0f : factor;
    }
};

inline void dropout_forward(const float* x, float* y, int64_t count, double rate, double seed) {
    const Dropout dropout(rate, seed);
    #pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) y[i] = x[i] * dropout(i);
}

}  // namespace jclip
