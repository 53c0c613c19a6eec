// Rotary positions: pairs of neighbouring numbers of q and k, turned by the angles of their token.
#pragma once
#include <type_traits>
#include "attention_dots.h"

namespace jclip {

// Of the first `tokens` tokens pair i turns by an angle with cosine and sine (tokens, half), in all heads alike.
struct Angles {
    const float *cosines, *sines;
    int64_t tokens, half;
    float sign;  // -1 turns back
};

inline void turn_pairs(const float* from, const float* c, const float* s, float sign, int64_t half, float* to) {
    #pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const float a = from[2 * i], b = from[2 * i + 1], sine = sign * s[i];
        to[2 * i] = a * c[i] - b * sine;
        to[2 * i + 1] = b * c[i] + a * sine;
    }
}

// A pair of bfloat16 numbers is one of 32 bits, the first the lower half.
inline void turn_pairs(const uint32_t* from, const float* c, const float* s, float sign, int64_t half, uint32_t* to) {
#ifdef JCLIP_HALF_DOTS
    const __m512i upper = _mm512_set1_epi32(0xffff0000), pairs = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t i = 0; i < half; i += LANES) {
        const __mmask16 own = first_lanes(half - i);
        const __m512i both = _mm512_maskz_loadu_epi32(own, from + i);
        const __m512 a = (__m512)_mm512_slli_epi32(both, 16), b = (__m512)_mm512_and_si512(both, upper);
        const __m512 cosine = _mm512_maskz_loadu_ps(own, c + i);
        const __m512 sine = _mm512_mul_ps(_mm512_maskz_loadu_ps(own, s + i), _mm512_set1_ps(sign));
        const __m512 first = _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine));
        const __m512 second = _mm512_fmadd_ps(b, cosine, _mm512_mul_ps(a, sine));
        const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        _mm512_mask_storeu_epi32(to + i, own, _mm512_permutexvar_epi16(pairs, rounded));
    }
#else
    #pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        const uint32_t low = from[i] << 16, high = from[i] & 0xffff0000u;
        float a, b;
        std::memcpy(&a, &low, 4);
        std::memcpy(&b, &high, 4);
        const float sine = sign * s[i];
        to[i] = half_bits(a * c[i] - b * sine) | half_bits(b * c[i] + a * sine) << 16;
    }
#endif
}

// Heads of one token, side by side.
template <class X>
inline void turn_heads(const X* from, const Angles& by, int64_t token, int64_t heads, X* to) {
    using Pairs = typename std::conditional<sizeof(X) == 2, uint32_t, float>::type;
    const int64_t wide = 2 * by.half;
    if (token >= by.tokens) {
        std::copy(from, from + heads * wide, to);
        return;
    }
    const float *c = by.cosines + token * by.half, *s = by.sines + token * by.half;
    for (int64_t h = 0; h < heads; h++)
        turn_pairs(reinterpret_cast<const Pairs*>(from + h * wide), c, s, by.sign, by.half, reinterpret_cast<Pairs*>(to + h * wide));
}

// One thread's copy of a head's q and k, turned; without angles nothing is copied.
template <class X>
struct HeadRows {
    const Angles by;
    const int64_t N, width, d, stride;  // `stride` of the rows at q and k, `width` of those that they come from
    std::unique_ptr<char[]> own;
    X* turned;
    const X *q, *k;

    HeadRows(const Angles& by, int64_t N, int64_t width, int64_t d)
        : by(by), N(N), width(width), d(d), stride(by.cosines ? d : width),
          own(by.cosines ? new char[2 * N * d * sizeof(X)] : nullptr), turned(reinterpret_cast<X*>(own.get())) {}

    void take(const X* from, int64_t D) {
        q = turned ? turned : from;
        k = turned ? turned + N * d : from + D;
        for (int64_t n = 0; turned && n < N; n++) {
            turn_heads(from + n * width, by, n, 1, turned + n * d);
            turn_heads(from + n * width + D, by, n, 1, turned + (N + n) * d);
        }
    }
};

// qkv (B, N, 3D), cosines and sines (T, d/2) of the first T tokens → out (B, N, 3D): of these q and k are turned, by the
// opposite angles with direction -1; what comes after them, and v, stays as it is. All heads turn alike.
template <class X>
void rotation_forward(const X* qkv, const float* cosines, const float* sines, X* out, int64_t rows, int64_t N, int64_t width,
                      int64_t T, int64_t half, double direction) {
    const int64_t turned = width / 3 * 2;  // numbers of q and k together
    const Angles by{cosines, sines, T, half, float(direction)};
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const X* from = qkv + row * width;
        X* to = out + row * width;
        turn_heads(from, by, row % N, turned / (2 * half), to);
        std::copy(from + turned, from + width, to + turned);
    }
}

}  // namespace jclip
