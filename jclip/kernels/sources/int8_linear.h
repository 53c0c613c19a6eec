// y = act(x W^T + b) + residual with weights of 8 bits (int8_weight.h). Each row of x becomes unsigned 8-bit numbers q with a
// scale s and a zero z of its own, x = s (q - z); the sums of q w are exact in 32 bits, whatever instructions compute them.
#pragma once
#include "linear.h"
#include "int8_weight.h"

namespace jclip {

const int64_t INT8_TILE = 256;  // rows of x at once: bytes and sums stay in the cache

struct Int8Rows {
    std::unique_ptr<uint8_t[]> values;  // (M, K)
    std::vector<float> scales;
    std::vector<int32_t> zeros;
};

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

template <class X>
inline Int8Rows to_bytes(const X* x, int64_t M, int64_t K) {
    Int8Rows rows{std::unique_ptr<uint8_t[]>(new uint8_t[M * K]), std::vector<float>(M), std::vector<int32_t>(M)};
    #pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < M; m++) to_bytes(x + m * K, rows.values.get() + m * K, K, rows.scales[m], rows.zeros[m]);
    return rows;
}

// The product of a tile of M rows with a block of columns, made where the threads are at work, for one of them each.
struct Int8Tile {
    dnnl::memory::desc x, weight, sums, scratch;
    dnnl::matmul product;
};

inline Int8Tile int8_tile(int64_t M, int64_t K) {
    using namespace dnnl;
    return kept<std::array<int64_t, 2>, Int8Tile>({M, K}, [=] {
        Int8Tile tile;
        tile.x = {{M, K}, memory::data_type::u8, Tag::ab};
        tile.weight = {{K, INT8_ROWS}, memory::data_type::s8, INT8_PACKED};
        tile.sums = {{M, INT8_ROWS}, memory::data_type::s32, Tag::ab};
        #pragma omp parallel
        #pragma omp single
        {
            const matmul::primitive_desc made(matmul::desc(tile.x, tile.weight, tile.sums), attributes(), jclip::engine());
            tile.scratch = made.scratchpad_desc();
            tile.product = matmul(made);
        }
        return tile;
    });
}

// The same sums for blocks of one row each, without special instructions: products of 16-bit numbers.
inline void int8_sums(const uint8_t* x, const int8_t* weight, int32_t* sums, int64_t M, int64_t K, int64_t first, int64_t width) {
    std::vector<int16_t> row(K);
    for (int64_t n = 0; n < width; n++) {
        const int8_t* values = Int8Block(weight, first + n, 1, K).values;
        for (int64_t k = 0; k < K; k++) row[k] = values[k];
        for (int64_t m = 0; m < M; m++) {
            const uint8_t* q = x + m * K;
            int32_t sum = 0;
            for (int64_t k = 0; k < K; k++) sum += int32_t(int16_t(q[k])) * int32_t(row[k]);
            sums[m * width + n] = sum;
        }
    }
}

// 2^t, to two units in the last place; |t| at most 126.
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
    if (activation == gelu) {  // erf by Abramowitz & Stegun, 7.1.26
        const float z = std::fabs(x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
        const float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
        const float beyond = 0.5f * tail * power_of_two(-1.44269504f * z * z);  // the normal distribution's share above |x|
        return x * (x < 0.0f ? beyond : 1.0f - beyond);
    }
    return x;
}

// One thread's arrays for a tile.
struct Int8Work {
    dnnl::stream stream{jclip::engine()};
    std::vector<int32_t> sums, row_sums;
    std::vector<float> scales, bias;

    Int8Work(int64_t M, int64_t width) : sums(M * width), row_sums(width), scales(width), bias(width) {}

    // The tile's sums; the same whether oneDNN makes them (R = 64) or not.
    void multiply(const Int8Tile& tile, const uint8_t* x, const int8_t* weight, int64_t M, int64_t K, int64_t first,
                  int64_t width, int64_t R) {
        for (int64_t n = 0; n < width; n += R) Int8Block(weight, (first + n) / R, R, K).read(&scales[n], &row_sums[n]);
        if (R == 1) return int8_sums(x, weight, sums.data(), M, K, first, width);
        dnnl::memory scratch(tile.scratch, jclip::engine());
        tile.product.execute(stream, {{DNNL_ARG_SRC, array(tile.x, x)},
                                      {DNNL_ARG_WEIGHTS, array(tile.weight, Int8Block(weight, first / R, R, K).values)},
                                      {DNNL_ARG_DST, array(tile.sums, sums.data())},
                                      {DNNL_ARG_SCRATCHPAD, scratch}});
    }

    // A row of them to numbers, act(s s_n (sum - z sum_n) + b) + residual.
    template <int activation, class Y>
    void finish(int64_t m, float scale, int32_t zero, const float* residual, Y* y, int64_t width) const {
        const int32_t *row = sums.data() + m * width, *of_weight = row_sums.data();
        const float *by = scales.data(), *plus = bias.data();
        if (residual) {
            #pragma omp simd
            for (int64_t n = 0; n < width; n++)
                narrow(activated<activation>(float(row[n] - zero * of_weight[n]) * (scale * by[n]) + plus[n]) + residual[n], y[n]);
        } else {
            #pragma omp simd
            for (int64_t n = 0; n < width; n++)
                narrow(activated<activation>(float(row[n] - zero * of_weight[n]) * (scale * by[n]) + plus[n]), y[n]);
        }
    }
};

template <int activation, class Y>
void int8_tiles(const Int8Rows& rows, const int8_t* weight, const float* bias, const float* residual, Y* y, int64_t M,
                int64_t N, int64_t K, int64_t R) {
    const int64_t height = std::min(M, INT8_TILE), width = std::min(N, INT8_ROWS);
    const int64_t down = (M + height - 1) / height, across = (N + width - 1) / width;
    Int8Tile whole, last;
    if (R == INT8_ROWS) {
        whole = int8_tile(height, K);
        last = M % height ? int8_tile(M % height, K) : whole;
    }
    #pragma omp parallel
    {
        Int8Work work(height, width);
        #pragma omp for schedule(static)
        for (int64_t task = 0; task < down * across; task++) {
            const int64_t m0 = task / across * height, n0 = task % across * width;
            const int64_t tall = std::min(height, M - m0), wide = std::min(width, N - n0);
            if (bias) std::copy(bias + n0, bias + n0 + wide, work.bias.begin());
            work.multiply(tall == height ? whole : last, rows.values.get() + m0 * K, weight, tall, K, n0, wide, R);
            for (int64_t m = 0; m < tall; m++) {
                const int64_t at = (m0 + m) * N + n0;
                work.finish<activation>(m, rows.scales[m0 + m], rows.zeros[m0 + m], residual ? residual + at : nullptr, y + at, wide);
            }
        }
    }
}

// R: rows of a block of the weight; N is a multiple of it.
template <class X, class Y>
void int8_linear_forward(const X* x, const int8_t* weight, const float* bias, const float* residual, Y* y, int64_t count,
                         int64_t N, int64_t K, int64_t R, double activation) {
    const int64_t M = count / K;
    const Int8Rows rows = to_bytes(x, M, K);
    if (activation == quickgelu) return int8_tiles<quickgelu>(rows, weight, bias, residual, y, M, N, K, R);
    if (activation == gelu) return int8_tiles<gelu>(rows, weight, bias, residual, y, M, N, K, R);
    int8_tiles<none>(rows, weight, bias, residual, y, M, N, K, R);
}

}  // namespace jclip
