// Dropout by a hash of the place and a seed: nothing is kept for the backward pass, which draws the same.
#pragma once
#include <algorithm>
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
    uint64_t first;
    uint32_t limit;
    float factor;

    Dropout(double rate, double seed)
        : first(mixed(uint64_t(seed) + 1)), limit(uint32_t(rate * 4294967296.0)), factor(float(1.0 / (1.0 - rate))) {}

    // y = x times the factors of `count` places, which begin at `place`. In blocks: hashes are of 64 bits, all else of 32,
    // and a loop of both is not vectorised.
    void apply(const float* x, float* y, int64_t count, int64_t place) const {
        blocks(x, y, count, [place](int64_t i) { return uint64_t(place + i); });
    }

    // Of places `place` + `others`.
    void apply(const float* x, float* y, int64_t count, int64_t place, const int64_t* others) const {
        blocks(x, y, count, [place, others](int64_t i) { return uint64_t(place + others[i]); });
    }

private:
    static constexpr int64_t BLOCK = 64;

    template <class Place>
    void blocks(const float* x, float* y, int64_t count, Place place_of) const {
        const Dropout own = *this;  // which y can't overlap
        int64_t at = 0;
        for (; at + BLOCK <= count; at += BLOCK) own.block(x, y, at, BLOCK, place_of);  // known lengths take a third
        own.block(x, y, at, count - at, place_of);
    }

    template <class Place>
    inline __attribute__((always_inline)) void block(const float* x, float* y, int64_t at, int64_t size,
                                                     Place place_of) const {
        uint32_t bits[BLOCK];
        for (int64_t i = 0; i < size; i++)
            bits[i] = uint32_t(mixed(first + place_of(at + i) * 0x9E3779B97F4A7C15u) >> 32);
        for (int64_t i = 0; i < size; i++) y[at + i] = x[at + i] * (bits[i] < limit ? 0.0f : factor);
    }
};

inline void dropout_forward(const float* x, float* y, int64_t count, double rate, double seed, double first) {
    const Dropout dropout(rate, seed);
    const int64_t block = 4096;
    #pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < count; at += block) dropout.apply(x + at, y + at, std::min(block, count - at), int64_t(first) + at);
}

}  // namespace jclip
