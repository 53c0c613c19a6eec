// bfloat16 weights (N, K) in the order in which oneDNN's products read them: (N/64, K/32, 16, 64, 2).
#pragma once
#include "onednn.h"

namespace jclip {

const Tag PACKED = Tag::BA16a64b2a;  // of the (K, N) matrix that a product takes

template <class W>
void reorder_weight(const W* from, W* to, int64_t N, int64_t K, bool pack) {
    #pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t k = 0; k < K; k++) {
            const int64_t block = (n / 64 * (K / 32) + k / 32) * 16 + k % 32 / 2;
            const int64_t there = (block * 64 + n % 64) * 2 + k % 2;
            to[pack ? there : n * K + k] = from[pack ? n * K + k : there];
        }
}

template <class W>
void pack_forward(const W* weight, W* packed, int64_t N, int64_t K) {
    reorder_weight(weight, packed, N, K, true);
}

// Whether oneDNN on this processor chooses that order by itself; asked for where it doesn't, it would run unoptimised.
inline void pack_choice(int32_t* chosen) {
    using namespace dnnl;
    const auto half = memory::data_type::bf16;
    const memory::desc x({64, 64}, half, Tag::ab), weight({64, 128}, half, Tag::any), y({64, 128}, half, Tag::ab);
    const matmul::primitive_desc made(matmul::desc(x, weight, y), jclip::engine());
    chosen[0] = made.weights_desc() == memory::desc({64, 128}, half, PACKED);
}

}  // namespace jclip
