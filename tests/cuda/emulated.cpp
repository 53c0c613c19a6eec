#include "emulated.h"
#include "attention.cuh"

extern "C" void forward(const float* qkv, float* out, float* logsum, int64_t B, int64_t N, int64_t width, double heads,
                        double causal) {
    jclip::attention_forward(qkv, out, logsum, B, N, width, heads, causal);
}

extern "C" void backward(const float* qkv, const float* out, const float* logsum, const float* grad, float* grad_qkv,
                         float* delta, int64_t B, int64_t N, int64_t width, double heads, double causal) {
    jclip::attention_backward(qkv, out, logsum, grad, grad_qkv, delta, B, N, width, heads, causal);
}

extern "C" void masked_forward(const float* qkv, const float* keys, float* out, float* logsum, int64_t B, int64_t N,
                               int64_t width, double heads, double rate, double seed) {
    jclip::attention_masked_forward(qkv, keys, out, logsum, B, N, width, heads, rate, seed);
}

extern "C" void masked_backward(const float* qkv, const float* keys, const float* out, const float* logsum,
                                const float* grad, float* grad_qkv, float* delta, int64_t B, int64_t N, int64_t width,
                                double heads, double rate, double seed) {
    jclip::attention_masked_backward(qkv, keys, out, logsum, grad, grad_qkv, delta, B, N, width, heads, rate, seed);
}
