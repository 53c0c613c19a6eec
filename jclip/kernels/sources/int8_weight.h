// Weights of 8 bits: per row n the scale s = max |w| / 127 and the integers round(w / s). Held in one array of bytes,
// (N/R, R, K + 8): a block has R rows' integers, then R scales (float), then R sums of the row's integers (int32).
// Where oneDNN multiplies, R is 64, 128 or 256 and the integers lie (R/64, K/4, 64, 4), as its products read them. Else R is 1.
#pragma once
#include <string>
#include "onednn.h"

namespace jclip {

const float LEAST_RANGE = 1e-30f;  // what is smaller counts as 0
const Tag INT8_PACKED = Tag::BA16a64b4a;  // of the (K, R) matrix that a product takes

// A block of that array.
struct Int8Block {
    int8_t* values;
    int64_t rows, K;

    Int8Block(const int8_t* array, int64_t block, int64_t rows, int64_t K)
        : values(const_cast<int8_t*>(array) + block * rows * (K + 8)), rows(rows), K(K) {}

    int8_t& at(int64_t n, int64_t k) const {
        return values[rows == 1 ? k : n / 64 * 64 * K + (k / 4 * 64 + n % 64) * 4 + k % 4];
    }
    // Copied, for a block of one row stands anywhere.
    void read(float* scales, int32_t* sums) const {
        std::memcpy(scales, values + rows * K, rows * 4);
        std::memcpy(sums, values + rows * (K + 4), rows * 4);
    }
    void write(int64_t n, float scale, int32_t sum) const {
        std::memcpy(values + rows * K + n * 4, &scale, 4);
        std::memcpy(values + rows * (K + 4) + n * 4, &sum, 4);
    }
};

// The largest |x|; infinite or no number if one of them is: compared by bits, which finite-math flags leave alone.
template <class X>
inline float largest_size(const X* x, int64_t count) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const float wide = widen(x[i]);
        uint32_t bits;
        std::memcpy(&bits, &wide, 4);
        largest = std::max(largest, bits & 0x7fffffffu);
    }
    float size;
    std::memcpy(&size, &largest, 4);
    return size;
}

inline bool is_finite(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

inline float no_number() {
    const uint32_t bits = 0x7fc00000u;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline void int8_weight_forward(const float* weight, int8_t* quantised, int64_t N, int64_t K, double rows) {
    const int64_t R = int64_t(rows);
    #pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const Int8Block block(quantised, n / R, R, K);
        const float* row = weight + n * K;
        const float size = largest_size(row, K), scale = is_finite(size) ? size / 127.0f : no_number();
        const float inverse = size > LEAST_RANGE && is_finite(size) ? 127.0f / size : 0.0f;
        int32_t sum = 0;
        for (int64_t k = 0; k < K; k++) {
            const int32_t q = int32_t(std::floor(row[k] * inverse + 0.5f));
            block.at(n % R, k) = int8_t(q);
            sum += q;
        }
        block.write(n % R, scale, sum);
    }
}

// Whether oneDNN multiplies such numbers with VNNI or AMX, whose sums are exact; older instructions' saturate.
inline void int8_weight_choice(int32_t* chosen) {
    using namespace dnnl;
    const memory::desc x({64, 64}, memory::data_type::u8, Tag::ab), weight({64, 64}, memory::data_type::s8, Tag::any);
    const memory::desc y({64, 64}, memory::data_type::s32, Tag::ab);
    const matmul::primitive_desc made(matmul::desc(x, weight, y), jclip::engine());
    const std::string name = made.impl_info_str();
    const bool exact = name.find("vnni") != std::string::npos || name.find("amx") != std::string::npos;
    chosen[0] = exact && made.weights_desc() == memory::desc({64, 64}, memory::data_type::s8, INT8_PACKED);
}

}  // namespace jclip
