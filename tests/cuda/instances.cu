#include "attention.cuh"

template <class X>
void both(const X* x, X* y, float* f) {
    jclip::attention_forward(x, y, f, 1, 1, 3, 1, 0);
    jclip::attention_backward(x, x, f, x, y, f, 1, 1, 3, 1, 0);
    jclip::attention_masked_forward(x, f, y, f, 1, 1, 3, 1, 0, 0);
    jclip::attention_masked_backward(x, f, x, f, x, y, f, 1, 1, 3, 1, 0, 0);
}

template void both<float>(const float*, float*, float*);
template void both<__half>(const __half*, __half*, float*);
template void both<__nv_bfloat16>(const __nv_bfloat16*, __nv_bfloat16*, float*);
