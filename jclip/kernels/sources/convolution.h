// y = [relu](norm(conv(x)) + residual) over channels-last maps (B, H, W, C); norm with its running statistics.
#pragma once
#include "onednn.h"

namespace jclip {

struct Convolution {
    dnnl::convolution_forward run;
    dnnl::memory::desc x, weight, blocked, channel, y, scratch;
    dnnl::reorder pack;
};

using ConvolutionKey = std::array<int64_t, 11>;

inline Convolution& convolution(int64_t B, int64_t H, int64_t W, int64_t C, int64_t O, int64_t k, int64_t stride,
                                dnnl::memory::data_type in, dnnl::memory::data_type out, bool residual, bool relu) {
    const ConvolutionKey key{B, H, W, C, O, k, stride, int64_t(in), int64_t(out), residual, relu};
    return kept<ConvolutionKey, Convolution>(key, [&] {
        using namespace dnnl;
        const auto f32 = memory::data_type::f32;
        const int64_t pad = k / 2, height = (H + 2 * pad - k) / stride + 1, width = (W + 2 * pad - k) / stride + 1;
        Convolution c;
        c.x = {{B, C, H, W}, in, Tag::nhwc};
        c.weight = {{O, C, k, k}, in, Tag::oihw};
        c.channel = {{1, O, 1, 1}, f32, Tag::nchw};
        c.y = {{B, O, height, width}, out, Tag::nhwc};
        post_ops ops;
        ops.append_binary(algorithm::binary_mul, c.channel);
        ops.append_binary(algorithm::binary_add, c.channel);
        if (residual) ops.append_binary(algorithm::binary_add, c.y);
        if (relu) ops.append_eltwise(1.0f, algorithm::eltwise_relu, 0.0f, 0.0f);
        const memory::desc any({O, C, k, k}, in, Tag::any);
        const convolution_forward::desc wanted(prop_kind::forward_inference, algorithm::convolution_direct, c.x, any, c.y,
                                               {stride, stride}, {pad, pad}, {pad, pad});
        const convolution_forward::primitive_desc made(wanted, attributes(ops), jclip::engine());
        c.scratch = made.scratchpad_desc();
        c.blocked = made.weights_desc();
        c.pack = reorder({jclip::engine(), c.weight, jclip::engine(), c.blocked});
        c.run = convolution_forward(made);
        return c;
    });
}

// The norm as a factor and a shift per channel: gamma / sqrt(variance + eps), beta - mean * factor.
// x and weight of one type, or x float and weight bfloat16: then x is rounded first. residual is of y's type.
template <class X, class W, class Y>
void convolution_forward(const X* x, const W* weight, const float* gamma, const float* beta, const float* mean,
                         const float* variance, const void* residual, Y* y, int64_t B, int64_t height, int64_t width, int64_t C,
                         int64_t O, int64_t k, double eps, double stride, double relu) {
    Convolution& c = convolution(B, height, width, C, O, k, int64_t(stride), type_of<W>(), type_of<Y>(), residual != nullptr, relu != 0);
    std::vector<float> factor(O), shift(O);
    for (int64_t o = 0; o < O; o++) {
        factor[o] = gamma[o] / std::sqrt(variance[o] + float(eps));
        shift[o] = beta[o] - mean[o] * factor[o];
    }
    dnnl::memory blocked(c.blocked, engine()), plain = array(c.weight, weight);
    c.pack.execute(stream(), plain, blocked);
    std::unique_ptr<uint16_t[]> half;
    if (sizeof(X) != sizeof(W)) half = rounded(reinterpret_cast<const float*>(x), B * height * width * C);
    Arguments arguments{{DNNL_ARG_SRC, array(c.x, half ? static_cast<const void*>(half.get()) : x)},
                        {DNNL_ARG_WEIGHTS, blocked},
                        {DNNL_ARG_DST, array(c.y, y)},
                        {DNNL_ARG_SCRATCHPAD, scratch(c.scratch)},
                        {DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, array(c.channel, factor.data())},
                        {DNNL_ARG_ATTR_MULTIPLE_POST_OP(1) | DNNL_ARG_SRC_1, array(c.channel, shift.data())}};
    if (residual != nullptr) arguments[DNNL_ARG_ATTR_MULTIPLE_POST_OP(2) | DNNL_ARG_SRC_1] = array(c.y, residual);
    c.run.execute(stream(), arguments);
    stream().wait();
}

}  // namespace jclip
