// Convolutions of channels-last maps (B, H, W, C) that are trained, without bias: the product and its two gradients. Maps are
// float or bfloat16; weights (O, C, k, k) and their gradients are float, rounded on the way into products of bfloat16 maps.
#pragma once
#include "onednn.h"

namespace jclip {

// One primitive, how its three arrays lie in memory, and the kernel's own order beside oihw.
struct TrainedConvolution {
    dnnl::primitive run;
    dnnl::memory::desc x, weight, blocked, y, scratch;
    dnnl::reorder pack;
};

enum ConvolutionPass { forward_pass, input_pass, weight_pass };

using TrainedConvolutionKey = std::array<int64_t, 9>;

inline TrainedConvolution& trained_convolution(ConvolutionPass pass, dnnl::memory::data_type type, int64_t B, int64_t H,
                                               int64_t W, int64_t C, int64_t O, int64_t k, int64_t stride) {
    const TrainedConvolutionKey key{int64_t(pass), int64_t(type), B, H, W, C, O, k, stride};
    return kept<TrainedConvolutionKey, TrainedConvolution>(key, [&] {
        using namespace dnnl;
        const auto f32 = memory::data_type::f32;
        const int64_t pad = k / 2, height = (H + 2 * pad - k) / stride + 1, width = (W + 2 * pad - k) / stride + 1;
        const memory::dims strides{stride, stride}, pads{pad, pad};
        const auto direct = algorithm::convolution_direct;
        TrainedConvolution c;
        c.x = {{B, C, H, W}, type, Tag::nhwc};
        c.weight = {{O, C, k, k}, f32, Tag::oihw};
        c.y = {{B, O, height, width}, type, Tag::nhwc};
        const memory::desc any({O, C, k, k}, type, Tag::any), any_f32({O, C, k, k}, f32, Tag::any);
        const convolution_forward::primitive_desc forward(
            {prop_kind::forward_training, direct, c.x, any, c.y, strides, pads, pads}, attributes(), jclip::engine());
        if (pass == forward_pass) {
            c.scratch = forward.scratchpad_desc();
            c.blocked = forward.weights_desc();
            c.run = convolution_forward(forward);
        } else if (pass == input_pass) {
            const convolution_backward_data::primitive_desc made({direct, c.x, any, c.y, strides, pads, pads}, attributes(),
                                                                 jclip::engine(), forward);
            c.scratch = made.scratchpad_desc();
            c.blocked = made.weights_desc();
            c.run = convolution_backward_data(made);
        } else {
            const convolution_backward_weights::primitive_desc made({direct, c.x, any_f32, c.y, strides, pads, pads},
                                                                    attributes(), jclip::engine(), forward);
            c.scratch = made.scratchpad_desc();
            c.blocked = made.diff_weights_desc();
            c.run = convolution_backward_weights(made);
        }
        c.pack = pass == weight_pass ? reorder({jclip::engine(), c.blocked, jclip::engine(), c.weight})
                                     : reorder({jclip::engine(), c.weight, jclip::engine(), c.blocked});
        return c;
    });
}

// The kernel in the order, and the type, that `c` multiplies.
inline dnnl::memory blocked_kernel(TrainedConvolution& c, const float* weight) {
    dnnl::memory blocked(c.blocked, engine()), plain = array(c.weight, weight);
    c.pack.execute(stream(), plain, blocked);
    return blocked;
}

template <class X>
void trained_convolution_forward(const X* x, const float* weight, X* y, int64_t B, int64_t H, int64_t W, int64_t C, int64_t O,
                                 int64_t k, double stride) {
    TrainedConvolution& c = trained_convolution(forward_pass, type_of<X>(), B, H, W, C, O, k, int64_t(stride));
    c.run.execute(stream(), {{DNNL_ARG_SRC, array(c.x, x)},
                             {DNNL_ARG_WEIGHTS, blocked_kernel(c, weight)},
                             {DNNL_ARG_DST, array(c.y, y)},
                             {DNNL_ARG_SCRATCHPAD, scratch(c.scratch)}});
    stream().wait();
}

template <class X>
void trained_convolution_input_gradient(const X* grad, const float* weight, X* grad_x, int64_t B, int64_t H, int64_t W,
                                        int64_t C, int64_t O, int64_t k, double stride) {
    TrainedConvolution& c = trained_convolution(input_pass, type_of<X>(), B, H, W, C, O, k, int64_t(stride));
    c.run.execute(stream(), {{DNNL_ARG_DIFF_DST, array(c.y, grad)},
                             {DNNL_ARG_WEIGHTS, blocked_kernel(c, weight)},
                             {DNNL_ARG_DIFF_SRC, array(c.x, grad_x)},
                             {DNNL_ARG_SCRATCHPAD, scratch(c.scratch)}});
    stream().wait();
}

template <class X>
void trained_convolution_weight_gradient(const X* grad, const X* x, float* grad_weight, int64_t B, int64_t H, int64_t W,
                                         int64_t C, int64_t O, int64_t k, double stride) {
    TrainedConvolution& c = trained_convolution(weight_pass, type_of<X>(), B, H, W, C, O, k, int64_t(stride));
    dnnl::memory blocked(c.blocked, engine()), plain = array(c.weight, grad_weight);
    c.run.execute(stream(), {{DNNL_ARG_SRC, array(c.x, x)},
                             {DNNL_ARG_DIFF_DST, array(c.y, grad)},
                             {DNNL_ARG_DIFF_WEIGHTS, blocked},
                             {DNNL_ARG_SCRATCHPAD, scratch(c.scratch)}});
    c.pack.execute(stream(), blocked, plain);
    stream().wait();
}

}  // namespace jclip
