// Attention of bfloat16 numbers by the processor's dot products of pairs of them (AVX512_BF16), one head of one sample at a
// time, five queries at once: keys and values are laid in pairs first, scores and weights never leave the cache.
#pragma once
#include "onednn.h"
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define JCLIP_HALF_DOTS
#include <immintrin.h>

namespace jclip {

const float LOG2_E = 1.44269504f;  // e^x = 2^(x log2 e)
const int64_t LANES = 16, WIDE = 4 * LANES;
const int64_t QUERIES = 5;  // with four vectors of keys or values twenty sums, which the registers hold

inline __mmask16 first_lanes(int64_t count) {
    return count >= LANES ? 0xffff : count <= 0 ? 0 : __mmask16((1u << count) - 1);
}

inline int64_t whole(int64_t count) { return (count + WIDE - 1) / WIDE * WIDE; }

// 2^x within 3e-6 of it, for what is then rounded to bfloat16.
inline __m512 power_of_two(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x less its floor
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(0.01353417f), _mm512_set1_ps(0.05201146f));
    p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(0.24144276f));
    p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(0.69300383f));
    p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(1.00000259f));
    return _mm512_scalef_ps(p, x);
}

// One row of scores, times `scale`, to weights that sum to one; those behind `seen` are zero.
inline void softmax(float* row, uint16_t* weights, int64_t N, int64_t seen, float scale) {
    __m512 most = _mm512_set1_ps(row[0]), sum = _mm512_setzero_ps();
    const __m512 by = _mm512_set1_ps(scale * LOG2_E);
    for (int64_t j = 0; j < seen; j += LANES) {
        const __mmask16 own = first_lanes(seen - j);
        most = _mm512_mask_max_ps(most, own, most, _mm512_maskz_loadu_ps(own, row + j));
    }
    const __m512 largest = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(most)), by);
    for (int64_t j = 0; j < seen; j += LANES) {
        const __mmask16 own = first_lanes(seen - j);
        const __m512 x = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(own, row + j), by, largest);
        const __m512 e = _mm512_maskz_mov_ps(own, power_of_two(x));
        sum = _mm512_add_ps(sum, e);
        _mm512_mask_storeu_ps(row + j, own, e);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
    for (int64_t j = 0; j < N; j += LANES) {
        const __m512 e = _mm512_maskz_loadu_ps(first_lanes(seen - j), row + j);
        _mm256_mask_storeu_epi16(weights + j, first_lanes(N - j), (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(e, factor)));
    }
}

// Numbers that begin where a line of the cache does, zero at first.
template <class X>
struct Lines {
    std::vector<X> kept;
    X* data;

    explicit Lines(int64_t count) : kept(count + 64 / sizeof(X)) {
        const uintptr_t begin = reinterpret_cast<uintptr_t>(kept.data());
        data = reinterpret_cast<X*>((begin + 63) / 64 * 64);
    }
};

// Sixteen rows of sixteen pairs become sixteen columns of them.
inline void transpose(__m512i* r) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// Five rows of `count` pairs each, times as many rows of V vectors, `stride` apart: `put(r, v, sum)` takes the sums.
template <int V, class Put>
inline void pair_products(const uint32_t* const* rows, const uint32_t* vectors, int64_t stride, int64_t count, Put put) {
    __m512 sums[QUERIES][V];
    #pragma GCC unroll 5
    for (int r = 0; r < QUERIES; r++)
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < count; k++) {
        __m512i other[V];
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            other[v] = _mm512_load_si512(vectors + k * stride + v * LANES);
            asm("" : "+v"(other[v]));  // loaded once, not for each row again
        }
        #pragma GCC unroll 5
        for (int r = 0; r < QUERIES; r++) {
            int32_t pair;
            std::memcpy(&pair, rows[r] + k, 4);
            const __m512i own = _mm512_set1_epi32(pair);
            #pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)own, (__m512bh)other[v]);
        }
    }
    #pragma GCC unroll 5
    for (int r = 0; r < QUERIES; r++)
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) put(r, v, sums[r][v]);
}

// The same for `wide` columns, in blocks of WIDE, of which each has `high` rows; `put(r, at, sum)`: `at` of the first lane.
template <class Put>
inline void pair_products(const uint32_t* const* rows, const uint32_t* vectors, int64_t high, int64_t count, int64_t wide, Put put) {
    for (int64_t at = 0; at < wide; at += WIDE) {
        const uint32_t* own = vectors + at * high;
        const auto put_here = [&](int r, int v, __m512 sum) { put(r, at + v * LANES, sum); };
        const int64_t left = (wide - at + LANES - 1) / LANES;
        if (left >= 4) pair_products<4>(rows, own, WIDE, count, put_here);
        else if (left == 3) pair_products<3>(rows, own, WIDE, count, put_here);
        else if (left == 2) pair_products<2>(rows, own, WIDE, count, put_here);
        else pair_products<1>(rows, own, WIDE, count, put_here);
    }
}

// One head of one sample; rows of q and k are `stride` numbers apart, those of v `width` and of the output `D`. d is even.
struct HalfHead {
    int64_t N, d, stride, width, D, pairs_of_keys, key_lanes;
    Lines<uint32_t> keys, values;  // (N/64, d/2, 64): each key's pairs; (d/64, N/2, 64): pairs of values
    Lines<float> scores;
    Lines<uint32_t> weights;  // of five queries, in pairs of keys; before they are divided by their sums
    float factors[QUERIES];

    HalfHead(int64_t N, int64_t d, int64_t stride, int64_t width, int64_t D)
        : N(N), d(d), stride(stride), width(width), D(D), pairs_of_keys((N + 1) / 2), key_lanes(whole(N)), keys(d / 2 * key_lanes),
          values(pairs_of_keys * whole(d)), scores(QUERIES * key_lanes), weights(QUERIES * key_lanes / 2) {}

    void attend(const uint16_t* q, const uint16_t* k, const uint16_t* v, uint16_t* out, float scale, bool causal) {
        lay_keys(k);
        lay_values(v);
        for (int64_t i = 0; i < N; i += QUERIES) {
            const int64_t seen = causal ? std::min(N, i + QUERIES) : N;
            score(q, i, seen);
            weigh(causal ? i + 1 : N, causal ? 1 : 0, seen, scale);
            mix(out, i, seen);
        }
    }

private:
    void lay_keys(const uint16_t* k) {
        for (int64_t j = 0; j < N; j += LANES)
            for (int64_t c = 0; c < d / 2; c += LANES) {
                const __mmask16 columns = first_lanes(d / 2 - c);
                __m512i r[LANES];
                for (int64_t i = 0; i < LANES; i++)
                    r[i] = j + i < N ? _mm512_maskz_loadu_epi32(columns, k + (j + i) * stride + 2 * c) : _mm512_setzero_si512();
                transpose(r);
                for (int64_t i = 0; i < std::min(LANES, d / 2 - c); i++)
                    _mm512_storeu_si512(keys.data + (j / WIDE * d / 2 + c + i) * WIDE + j % WIDE, r[i]);
            }
    }

    void lay_values(const uint16_t* v) {
        for (int64_t j = 0; j < N; j += 2)
            for (int64_t c = 0; c < d; c += LANES) {
                const __mmask16 columns = first_lanes(d - c);
                const uint16_t* row = v + j * width + c;
                const __m512i first = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, row));
                const __m512i second = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(j + 1 < N ? columns : 0, row + width));
                const __m512i pairs = _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
                _mm512_storeu_si512(values.data + (c / WIDE * pairs_of_keys + j / 2) * WIDE + c % WIDE, pairs);
            }
    }

    // Five queries from the i-th on, the last one again where there are no more.
    void score(const uint16_t* q, int64_t i, int64_t seen) {
        const uint32_t* rows[QUERIES];
        for (int64_t r = 0; r < QUERIES; r++)
            rows[r] = reinterpret_cast<const uint32_t*>(q + std::min(i + r, N - 1) * stride);
        float* to = scores.data;
        const int64_t row = key_lanes;
        pair_products(rows, keys.data, d / 2, d / 2, seen,
                      [=](int r, int64_t at, __m512 sum) { _mm512_store_ps(to + r * row + at, sum); });
    }

    // e^(score - largest) of what each query sees, `own` keys and `more` for each one after, and 1 / their sum; else zero.
    void weigh(int64_t own, int64_t more, int64_t seen, float scale) {
        const __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const __m512 by = _mm512_set1_ps(scale * LOG2_E);
        __m512 most[QUERIES], sum[QUERIES];
        __m512i end[QUERIES];
        const auto seen_by = [&](int r, int64_t j) {
            return _mm512_cmplt_epi32_mask(_mm512_add_epi32(places, _mm512_set1_epi32(int(j))), end[r]);
        };
        #pragma GCC unroll 5
        for (int r = 0; r < QUERIES; r++) {
            most[r] = _mm512_set1_ps(scores.data[r * key_lanes]);
            sum[r] = _mm512_setzero_ps();
            end[r] = _mm512_set1_epi32(int(std::min(seen, own + r * more)));
        }
        for (int64_t j = 0; j < seen; j += LANES)
            #pragma GCC unroll 5
            for (int r = 0; r < QUERIES; r++)
                most[r] = _mm512_mask_max_ps(most[r], seen_by(r, j), most[r], _mm512_load_ps(scores.data + r * key_lanes + j));
        #pragma GCC unroll 5
        for (int r = 0; r < QUERIES; r++) most[r] = _mm512_mul_ps(_mm512_set1_ps(_mm512_reduce_max_ps(most[r])), by);
        for (int64_t j = 0; j < seen; j += LANES)
            #pragma GCC unroll 5
            for (int r = 0; r < QUERIES; r++) {
                const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(scores.data + r * key_lanes + j), by, most[r]);
                const __m512 e = _mm512_maskz_mov_ps(seen_by(r, j), power_of_two(x));
                sum[r] = _mm512_add_ps(sum[r], e);
                uint32_t* to = weights.data + (r * key_lanes + j) / 2;
                _mm256_store_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(e));
            }
        for (int r = 0; r < QUERIES; r++) factors[r] = 1.0f / _mm512_reduce_add_ps(sum[r]);
    }

    void mix(uint16_t* out, int64_t i, int64_t seen) {
        const uint32_t* rows[QUERIES];
        __m512 factor[QUERIES];
        for (int64_t r = 0; r < QUERIES; r++) {
            rows[r] = weights.data + r * key_lanes / 2;
            factor[r] = _mm512_set1_ps(factors[r]);
        }
        const int64_t count = std::min(QUERIES, N - i), stride = D, wide = d;
        uint16_t* to = out + i * D;
        pair_products(rows, values.data, pairs_of_keys, (seen + 1) / 2, d, [&](int r, int64_t at, __m512 sum) {
            if (r >= count) return;
            const __m256i half = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sum, factor[r]));
            _mm256_mask_storeu_epi16(to + r * stride + at, first_lanes(wide - at), half);
        });
    }
};

}  // namespace jclip
#endif
