// y = act(x W^T + b) + residual as one oneDNN product, and its gradients. W is (N, K), as torch and OpenAI's files have it,
// or packed (pack.h).
#pragma once
#include "pack.h"

namespace jclip {

enum Activation { none, quickgelu, gelu, relu, gelu_tanh };

inline void append_activation(dnnl::post_ops& ops, int activation) {
    if (activation == quickgelu) ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_swish, 1.702f, 0.0f);
    if (activation == gelu) ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_gelu_erf, 0.0f, 0.0f);
    if (activation == gelu_tanh) ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_gelu_tanh, 0.0f, 0.0f);
    if (activation == relu) ops.append_eltwise(1.0f, dnnl::algorithm::eltwise_relu, 0.0f, 0.0f);
}

// C (M, N) = act(A (M, K) B (K, N) + bias) + residual; `a_tag`, `b_tag`: how the two lie in memory.
struct Product {
    dnnl::matmul run;
    dnnl::memory::desc a, b, bias, c, residual, scratch;
    bool activated;
};

using ProductKey = std::array<int64_t, 10>;

inline Product& product(int64_t M, int64_t K, int64_t N, Tag a_tag, Tag b_tag, dnnl::memory::data_type in,
                        dnnl::memory::data_type out, bool biased, int activation, bool residual) {
    const ProductKey key{M, K, N, int64_t(a_tag), int64_t(b_tag), int64_t(in), int64_t(out), biased, activation, residual};
    return kept<ProductKey, Product>(key, [&] {
        const auto f32 = dnnl::memory::data_type::f32;
        Product p;
        p.a = {{M, K}, in, a_tag};
        p.b = {{K, N}, in, b_tag};
        p.bias = {{1, N}, f32, Tag::ab};
        p.c = {{M, N}, out, Tag::ab};
        p.residual = {{M, N}, f32, Tag::ab};
        p.activated = activation != none;
        dnnl::post_ops ops;
        append_activation(ops, activation);
        if (residual) ops.append_binary(dnnl::algorithm::binary_add, p.residual);
        const auto wanted = biased ? dnnl::matmul::desc(p.a, p.b, p.bias, p.c) : dnnl::matmul::desc(p.a, p.b, p.c);
        const dnnl::matmul::primitive_desc made(wanted, attributes(ops), engine());
        p.scratch = made.scratchpad_desc();
        p.run = dnnl::matmul(made);
        return p;
    });
}

inline void multiply(const Product& p, const void* a, const void* b, const float* bias, const float* residual, void* c) {
    Arguments arguments{{DNNL_ARG_SRC, array(p.a, a)},
                        {DNNL_ARG_WEIGHTS, array(p.b, b)},
                        {DNNL_ARG_DST, array(p.c, c)},
                        {DNNL_ARG_SCRATCHPAD, scratch(p.scratch)}};
    if (bias) arguments[DNNL_ARG_BIAS] = array(p.bias, bias);
    if (residual)
        arguments[DNNL_ARG_ATTR_MULTIPLE_POST_OP(p.activated ? 1 : 0) | DNNL_ARG_SRC_1] = array(p.residual, residual);
    p.run.execute(stream(), arguments);
    stream().wait();
}

// What a product reads: the array itself, or its values rounded to bfloat16.
struct Operand {
    std::unique_ptr<uint16_t[]> own;
    const void* data;
};

template <class X>
Operand operand(const X* x, int64_t count, bool half) {
    if (!half || sizeof(X) == 2) return {nullptr, x};
    std::unique_ptr<uint16_t[]> own = rounded(reinterpret_cast<const float*>(x), count);
    const void* data = own.get();
    return {std::move(own), data};
}

inline dnnl::memory::data_type type_of_products(bool half) {
    return half ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

// A weight in bfloat16, or `half`, makes a product of bfloat16 numbers, added up in float; y is float or bfloat16.
template <class X, class W, class Y>
void linear_forward(const X* x, const W* weight, const float* bias, const float* residual, Y* y, int64_t count,
                    int64_t N, int64_t K, bool packed, double activation, double half) {
    const bool bf16 = sizeof(W) == 2 || half != 0;
    Product& p = product(count / K, K, N, Tag::ab, packed ? PACKED : Tag::ba, type_of_products(bf16), type_of<Y>(),
                         bias != nullptr, int(activation), residual != nullptr);
    const Operand a = operand(x, count, bf16), w = operand(weight, N * K, bf16);
    multiply(p, a.data, w.data, bias, residual, y);
}

// dx = g W
template <class W>
void linear_input_gradient(const float* grad, const W* weight, float* grad_x, int64_t count, int64_t N, int64_t K,
                           bool packed, double half) {
    const bool bf16 = sizeof(W) == 2 || half != 0;
    std::vector<W> plain;
    if (packed) {
        plain.assign(N * K, weight[0]);
        reorder_weight(weight, plain.data(), N, K, false);
    }
    Product& p = product(count / N, N, K, Tag::ab, Tag::ab, type_of_products(bf16), type_of<float>(), false, none, false);
    const Operand g = operand(grad, count, bf16), w = operand(packed ? plain.data() : weight, N * K, bf16);
    multiply(p, g.data, w.data, nullptr, nullptr, grad_x);
}

// dW = g^T x
template <class X>
void linear_weight_gradient(const float* grad, const X* x, float* grad_weight, int64_t count, int64_t N, int64_t K,
                            double half) {
    const bool bf16 = half != 0;
    const int64_t M = count / N;
    Product& p = product(N, M, K, Tag::ba, Tag::ab, type_of_products(bf16), type_of<float>(), false, none, false);
    const Operand g = operand(grad, count, bf16), a = operand(x, M * K, bf16);
    multiply(p, g.data, a.data, nullptr, nullptr, grad_weight);
}

// db = sum of g over its rows, a block of columns per OpenMP iteration
inline void linear_bias_gradient(const float* grad, float* grad_bias, int64_t count, int64_t N) {
    const int64_t block = 64;
    #pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < N; first += block) {
        const int64_t end = std::min(N, first + block);
        for (int64_t n = first; n < end; n++) grad_bias[n] = 0.0f;
        for (int64_t row = 0; row < count / N; row++)
            for (int64_t n = first; n < end; n++) grad_bias[n] += grad[row * N + n];
    }
}

}  // namespace jclip
