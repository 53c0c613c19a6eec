// y = act(x W^T + b) + residual with weights of 8 bits (int8_weight.h). Each row of x becomes unsigned 8-bit numbers q with a
// scale s and a zero z of its own, x = s (q - z); the sums of q w are exact in 32 bits, whatever instructions compute them.
#pragma once
#include <omp.h>
#include "linear.h"
#include "int8_weight.h"

namespace jclip {

// Rows and columns of y at once: bytes and sums of so many stay in the cache.
const int64_t INT8_HIGH = 256, INT8_LOW = 16, INT8_WIDE = 256;

// One row; where a number is infinite or none the scale is none, and so is all that is made of it.
template <class X>
inline void to_bytes(const X* x, uint8_t* q, int64_t K, float& scale, int32_t& zero) {
    float least = 0.0f, most = 0.0f;  // 0 is among what the integers can say
    for (int64_t k = 0; k < K; k++) {
        const float wide = widen(x[k]);
        least = wide < least ? wide : least;
        most = wide > most ? wide : most;
    }
    const bool finite = is_finite(largest_size(x, K));
    const float range = most - least, inverse = finite && range > LEAST_RANGE ? 255.0f / range : 0.0f;
    scale = finite ? range / 255.0f : no_number();
    zero = int32_t(0.5f - (finite ? least : 0.0f) * inverse);
    const float offset = float(zero) + 0.5f;
    for (int64_t k = 0; k < K; k++) q[k] = uint8_t(std::min(255, std::max(0, int32_t(widen(x[k]) * inverse + offset))));
}

// The product of M rows with a block of the weight, made where the threads are at work, for one of them each.
struct Int8Product {
    dnnl::memory::desc x, weight, sums, scratch;
    dnnl::matmul run;
};

inline Int8Product int8_product(int64_t M, int64_t K, int64_t R) {
    using namespace dnnl;
    return kept<std::array<int64_t, 3>, Int8Product>({M, K, R}, [=] {
        Int8Product p;
        p.x = {{M, K}, memory::data_type::u8, Tag::ab};
        p.weight = {{K, R}, memory::data_type::s8, INT8_PACKED};
        p.sums = {{M, R}, memory::data_type::s32, Tag::ab};
        #pragma omp parallel
        #pragma omp single
        {
            const matmul::primitive_desc made(matmul::desc(p.x, p.weight, p.sums), attributes(), jclip::engine());
            p.scratch = made.scratchpad_desc();
            p.run = matmul(made);
        }
        return p;
    });
}

// What the compiler multiplies and adds up in one instruction, exactly: bytes with VNNI, else numbers of 16 bits.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
using Int8Factor = int8_t;
using Int8Other = uint8_t;
#else
using Int8Factor = int16_t;
using Int8Other = int16_t;
#endif

// The same sums for blocks of one row each, four at once, on any processor.
inline void int8_sums(const uint8_t* x, const int8_t* weight, int32_t* sums, int64_t M, int64_t K, int64_t first, int64_t width) {
    std::vector<Int8Factor> rows(4 * K);
    const Int8Factor *w0 = rows.data(), *w1 = w0 + K, *w2 = w1 + K, *w3 = w2 + K;
    for (int64_t n = 0; n < width; n += 4) {
        const int64_t columns = std::min<int64_t>(4, width - n);
        for (int64_t i = 0; i < columns; i++)
            std::copy_n(Int8Block(weight, first + n + i, 1, K).values, K, rows.data() + i * K);
        for (int64_t m = 0; m < M; m++) {
            const uint8_t* q = x + m * K;
            int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
            for (int64_t k = 0; k < K; k++) {
                const int32_t value = Int8Other(q[k]);
                s0 += value * w0[k];
                s1 += value * w1[k];
                s2 += value * w2[k];
                s3 += value * w3[k];
            }
            const int32_t four[4] = {s0, s1, s2, s3};
            std::copy_n(four, columns, sums + m * width + n);
        }
    }
}

// 2^t within 3e-7 of it; t beyond 126 counts as 126.
inline float power_of_two(float t) {
    t = std::min(126.0f, std::max(-126.0f, t));
    const float whole = std::floor(t + 0.5f), f = t - whole;
    const float wide = 1.0f + f * (0.69314718f + f * (0.24022651f + f * (0.05550411f + f * (0.00961813f + f * (0.00133336f + f * 0.00015403f)))));
    const int32_t exponent = (int32_t(whole) + 127) << 23;
    float scale;
    std::memcpy(&scale, &exponent, 4);
    return wide * scale;
}

template <int activation>
inline float activated(float x) {
    if (activation == quickgelu) return x / (1.0f + power_of_two(-1.702f * 1.44269504f * x));
    if (activation == gelu_tanh) {  // x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))
        const float by = 1.59576912f + 0.07135481f * x * x;
        return x / (1.0f + power_of_two(-1.44269504f * by * x));
    }
    if (activation == gelu) {  // erf by Abramowitz & Stegun, 7.1.26
        const float z = std::fabs(x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
        const float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
        const float beyond = 0.5f * tail * power_of_two(-1.44269504f * z * z);  // the normal distribution's share above |x|
        return x * (x < 0.0f ? beyond : 1.0f - beyond);
    }
    return x;
}

// One thread's arrays: a tile of x in bytes, and its sums with some columns of the weight.
struct Int8Work {
    std::vector<uint8_t> bytes;
    std::vector<int32_t> zeros, sums, row_sums;
    std::vector<float> scales, by, bias;
    dnnl::stream stream{jclip::engine()};

    Int8Work(int64_t M, int64_t K)
        : bytes(M * K), zeros(M), sums(M * INT8_WIDE), row_sums(INT8_WIDE), scales(M), by(INT8_WIDE), bias(INT8_WIDE) {}

    template <class X>
    void take(const X* x, int64_t M, int64_t K) {
        for (int64_t m = 0; m < M; m++) to_bytes(x + m * K, &bytes[m * K], K, scales[m], zeros[m]);
    }

    // Their sums with columns first to first + width: one block, which oneDNN multiplies, or blocks of one row (R = 1).
    void multiply(const Int8Product& product, const int8_t* weight, int64_t M, int64_t K, int64_t first, int64_t width, int64_t R) {
        for (int64_t n = 0; n < width; n += R) Int8Block(weight, (first + n) / R, R, K).read(&by[n], &row_sums[n]);
        if (R == 1) return int8_sums(bytes.data(), weight, sums.data(), M, K, first, width);
        dnnl::memory scratch(product.scratch, jclip::engine());
        product.run.execute(stream, {{DNNL_ARG_SRC, array(product.x, bytes.data())},
                                     {DNNL_ARG_WEIGHTS, array(product.weight, Int8Block(weight, first / R, R, K).values)},
                                     {DNNL_ARG_DST, array(product.sums, sums.data())},
                                     {DNNL_ARG_SCRATCHPAD, scratch}});
    }

    // Row m of them to numbers, act(s s_n (sum - z sum_n) + b) + residual.
    template <int activation, class Y>
    void finish(int64_t m, const float* residual, Y* y, int64_t width) const {
        const int32_t *row = &sums[m * width], *of_weight = row_sums.data(), zero = zeros[m];
        const float *factor = by.data(), *plus = bias.data(), scale = scales[m];
        if (residual) {
            #pragma omp simd
            for (int64_t n = 0; n < width; n++)
                narrow(activated<activation>(float(row[n] - zero * of_weight[n]) * (scale * factor[n]) + plus[n]) + residual[n], y[n]);
        } else {
            #pragma omp simd
            for (int64_t n = 0; n < width; n++)
                narrow(activated<activation>(float(row[n] - zero * of_weight[n]) * (scale * factor[n]) + plus[n]), y[n]);
        }
    }
};

// Tiles of rows, one per task; where these are fewer than threads each is done in parts of its columns, its bytes made anew.
struct Int8Tiling {
    int64_t high, down, wide, parts, part;

    Int8Tiling(int64_t M, int64_t N, int64_t R) : wide(R == 1 ? INT8_WIDE : R) {
        const int64_t threads = omp_get_max_threads(), rounds = (M + INT8_HIGH * threads - 1) / (INT8_HIGH * threads);
        high = std::min(M, std::max(INT8_LOW, (M + rounds * threads - 1) / (rounds * threads)));
        down = (M + high - 1) / high;
        const int64_t wanted = (threads + down - 1) / down, blocks = (N + wide - 1) / wide;
        part = (blocks + wanted - 1) / wanted * wide;
        parts = (N + part - 1) / part;
    }
};

template <int activation, class X, class Y>
void int8_tiles(const X* x, const int8_t* weight, const float* bias, const float* residual, Y* y, int64_t M, int64_t N,
                int64_t K, int64_t R) {
    const Int8Tiling tiling(M, N, R);
    Int8Product whole, last;
    if (R != 1) {
        whole = int8_product(tiling.high, K, R);
        last = M % tiling.high ? int8_product(M % tiling.high, K, R) : whole;
    }
    #pragma omp parallel
    {
        Int8Work work(tiling.high, K);
        #pragma omp for schedule(static)
        for (int64_t task = 0; task < tiling.down * tiling.parts; task++) {
            const int64_t m0 = task / tiling.parts * tiling.high, high = std::min(tiling.high, M - m0);
            const int64_t begin = task % tiling.parts * tiling.part, end = std::min(begin + tiling.part, N);
            work.take(x + m0 * K, high, K);
            for (int64_t n0 = begin; n0 < end; n0 += tiling.wide) {
                const int64_t width = std::min(tiling.wide, end - n0);
                if (bias) std::copy(bias + n0, bias + n0 + width, work.bias.begin());
                work.multiply(high == tiling.high ? whole : last, weight, high, K, n0, width, R);
                for (int64_t m = 0; m < high; m++) {
                    const int64_t at = (m0 + m) * N + n0;
                    work.finish<activation>(m, residual ? residual + at : nullptr, y + at, width);
                }
            }
        }
    }
}

// R: rows of a block of the weight; N is a multiple of it.
template <class X, class Y>
void int8_linear_forward(const X* x, const int8_t* weight, const float* bias, const float* residual, Y* y, int64_t count,
                         int64_t N, int64_t K, int64_t R, double activation) {
    const int64_t M = count / K;
    if (activation == quickgelu) return int8_tiles<quickgelu>(x, weight, bias, residual, y, M, N, K, R);
    if (activation == gelu) return int8_tiles<gelu>(x, weight, bias, residual, y, M, N, K, R);
    if (activation == gelu_tanh) return int8_tiles<gelu_tanh>(x, weight, bias, residual, y, M, N, K, R);
    int8_tiles<none>(x, weight, bias, residual, y, M, N, K, R);
}

}  // namespace jclip
