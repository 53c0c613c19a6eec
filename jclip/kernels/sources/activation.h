// QuickGELU x sigmoid(1.702 x), GELU x Phi(x) and its tanh form, elementwise, through oneDNN.
#pragma once
#include "linear.h"

namespace jclip {

inline dnnl::algorithm algorithm_of(int activation) {
    if (activation == gelu_tanh) return dnnl::algorithm::eltwise_gelu_tanh;
    return activation == quickgelu ? dnnl::algorithm::eltwise_swish : dnnl::algorithm::eltwise_gelu_erf;
}

using ElementwiseKey = std::array<int64_t, 2>;

inline dnnl::memory::desc flat(int64_t count) { return {{count}, dnnl::memory::data_type::f32, Tag::a}; }

inline dnnl::eltwise_forward::primitive_desc forward_of(int activation, int64_t count) {
    using namespace dnnl;
    const eltwise_forward::desc wanted(prop_kind::forward_training, algorithm_of(activation), flat(count), 1.702f);
    return {wanted, engine()};
}

inline void activation_forward(const float* x, float* y, int64_t count, double activation) {
    using namespace dnnl;
    const int kind = int(activation);
    auto& run = kept<ElementwiseKey, eltwise_forward>({kind, count}, [=] { return forward_of(kind, count); });
    run.execute(stream(), {{DNNL_ARG_SRC, array(flat(count), x)}, {DNNL_ARG_DST, array(flat(count), y)}});
    stream().wait();
}

inline void activation_backward(const float* x, const float* grad, float* grad_x, int64_t count, double activation) {
    using namespace dnnl;
    const int kind = int(activation);
    auto& run = kept<ElementwiseKey, eltwise_backward>({kind, count}, [=] {
        const eltwise_backward::desc wanted(algorithm_of(kind), flat(count), flat(count), 1.702f);
        return eltwise_backward::primitive_desc(wanted, engine(), forward_of(kind, count));
    });
    run.execute(stream(), {{DNNL_ARG_SRC, array(flat(count), x)},
                           {DNNL_ARG_DIFF_DST, array(flat(count), grad)},
                           {DNNL_ARG_DIFF_SRC, array(flat(count), grad_x)}});
    stream().wait();
}

}  // namespace jclip
