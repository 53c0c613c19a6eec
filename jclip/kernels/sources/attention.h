// Attention over packed q, k, v of shape (B, N, 3D), head by head, one head of one sample per OpenMP iteration.
#pragma once
#include <dnnl.h>
#include "attention_half.h"
#include "onednn.h"

namespace jclip {

// One row of scores, times `scale`, to weights that sum to one; those behind `seen` are zero.
template <class Y>
inline void softmax(float* row, Y* weights, int64_t N, int64_t seen, float scale) {
    float largest = row[0], sum = 0.0f;
    for (int64_t j = 1; j < seen; j++) largest = row[j] > largest ? row[j] : largest;
    for (int64_t j = 0; j < seen; j++) row[j] = std::exp((row[j] - largest) * scale);
    for (int64_t j = 0; j < seen; j++) sum += row[j];
    const float factor = 1.0f / sum;
    for (int64_t j = 0; j < seen; j++) narrow(row[j] * factor, weights[j]);
    for (int64_t j = seen; j < N; j++) narrow(0.0f, weights[j]);
}

// scores (N, N) = softmax(q k^T / sqrt(d)), row by row; entries behind the diagonal are zero if causal.
inline void attention_weights(const float* q, const float* k, float* scores, int64_t N, int64_t d, int64_t stride,
                              bool causal) {
    dnnl_sgemm('N', 'T', N, N, d, 1.0f, q, stride, k, stride, 0.0f, scores, N);
    const float scale = 1.0f / std::sqrt(float(d));
    for (int64_t i = 0; i < N; i++) softmax(scores + i * N, scores + i * N, N, causal ? i + 1 : N, scale);
}

inline void attention_forward(const float* qkv, float* out, int64_t B, int64_t N, int64_t width, double heads,
                              double causal) {
    const int64_t H = int64_t(heads), D = width / 3, d = D / H;
    #pragma omp parallel
    {
        std::vector<float> scores(N * N);
        #pragma omp for schedule(static)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H;
            const float* q = qkv + b * N * width + h * d;
            attention_weights(q, q + D, scores.data(), N, d, width, causal != 0);
            dnnl_sgemm('N', 'N', N, d, N, 1.0f, scores.data(), N, q + 2 * D, width, 0.0f, out + b * N * D + h * d, D);
        }
    }
}

// The two products of a head in bfloat16, accumulated in float. Made where the threads are at work, for one of them each;
// each brings its own scratch, for they run at the same time.
struct HeadProducts {
    dnnl::memory::desc q, k, scores, weights, v, out, score_scratch, mix_scratch;
    dnnl::matmul score, mix;
};

inline HeadProducts& head_products(int64_t N, int64_t width, int64_t D, int64_t d) {
    using namespace dnnl;
    return kept<std::array<int64_t, 3>, HeadProducts>({N, width, d}, [=] {
        const auto half = memory::data_type::bf16, f32 = memory::data_type::f32;
        HeadProducts p;
        p.q = {{N, d}, half, memory::dims{width, 1}};
        p.k = {{d, N}, half, memory::dims{1, width}};
        p.v = {{N, d}, half, memory::dims{width, 1}};
        p.scores = {{N, N}, f32, Tag::ab};
        p.weights = {{N, N}, half, Tag::ab};
        p.out = {{N, d}, half, memory::dims{D, 1}};
        #pragma omp parallel
        #pragma omp single
        {
            const matmul::primitive_desc score(matmul::desc(p.q, p.k, p.scores), attributes(), jclip::engine());
            const matmul::primitive_desc mix(matmul::desc(p.weights, p.v, p.out), attributes(), jclip::engine());
            p.score_scratch = score.scratchpad_desc();
            p.mix_scratch = mix.scratchpad_desc();
            p.score = matmul(score);
            p.mix = matmul(mix);
        }
        return p;
    });
}

// One thread's arrays, and what oneDNN knows them by: made once, for a head takes hardly longer than making them.
struct HeadWork {
    HeadProducts& products;
    int64_t N;
    std::vector<float> scores;
    std::vector<uint16_t> weights;
    dnnl::stream stream;
    Arguments to_score, to_mix;

    HeadWork(HeadProducts& products, int64_t N)
        : products(products), N(N), scores(N * N), weights(N * N), stream(jclip::engine()),
          to_score{{DNNL_ARG_SRC, array(products.q, nullptr)},
                   {DNNL_ARG_WEIGHTS, array(products.k, nullptr)},
                   {DNNL_ARG_DST, array(products.scores, scores.data())},
                   {DNNL_ARG_SCRATCHPAD, dnnl::memory(products.score_scratch, jclip::engine())}},
          to_mix{{DNNL_ARG_SRC, array(products.weights, weights.data())},
                 {DNNL_ARG_WEIGHTS, array(products.v, nullptr)},
                 {DNNL_ARG_DST, array(products.out, nullptr)},
                 {DNNL_ARG_SCRATCHPAD, dnnl::memory(products.mix_scratch, jclip::engine())}} {}

    template <class X>
    void score(const X* q, const X* k) {
        point(to_score, DNNL_ARG_SRC, q);
        point(to_score, DNNL_ARG_WEIGHTS, k);
        products.score.execute(stream, to_score);
    }

    void weigh(int64_t i, int64_t seen, float scale) {
        softmax(scores.data() + i * N, weights.data() + i * N, N, seen, scale);
    }

    template <class X>
    void mix(const X* v, X* out) {
        point(to_mix, DNNL_ARG_WEIGHTS, v);
        point(to_mix, DNNL_ARG_DST, out);
        products.mix.execute(stream, to_mix);
        stream.wait();
    }

private:
    void point(Arguments& arguments, int name, const void* data) {
        arguments.at(name).set_data_handle(const_cast<void*>(data), stream);
    }
};

template <class X>
void attention_forward(const X* qkv, X* out, int64_t B, int64_t N, int64_t width, double heads, double causal) {
    const int64_t H = int64_t(heads), D = width / 3, d = D / H;
    const float scale = 1.0f / std::sqrt(float(d));
#ifdef JCLIP_HALF_DOTS
    if (d % 2 == 0) {
        const auto *from = reinterpret_cast<const uint16_t*>(qkv);
        return half_attention(from, reinterpret_cast<uint16_t*>(out), B, N, width, H, causal != 0);
    }
#endif
    HeadProducts& products = head_products(N, width, D, d);
    #pragma omp parallel
    {
        HeadWork work(products, N);
        #pragma omp for schedule(static)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H;
            const X* q = qkv + b * N * width + h * d;
            work.score(q, q + D);
            for (int64_t i = 0; i < N; i++) work.weigh(i, causal != 0 ? i + 1 : N, scale);
            work.mix(q + 2 * D, out + b * N * D + h * d);
        }
    }
}

inline void attention_backward(const float* qkv, const float* grad, float* grad_qkv, int64_t B, int64_t N,
                               int64_t width, double heads, double causal) {
    const int64_t H = int64_t(heads), D = width / 3, d = D / H;
    const float scale = 1.0f / std::sqrt(float(d));
    #pragma omp parallel
    {
        std::vector<float> weights(N * N), inner(N * N);
        float *w = weights.data(), *g = inner.data();
        #pragma omp for schedule(static)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H;
            const float *q = qkv + b * N * width + h * d, *k = q + D, *v = k + D, *go = grad + b * N * D + h * d;
            float *gq = grad_qkv + b * N * width + h * d, *gk = gq + D, *gv = gk + D;
            attention_weights(q, k, w, N, d, width, causal != 0);
            dnnl_sgemm('T', 'N', N, d, N, 1.0f, w, N, go, D, 0.0f, gv, width);
            dnnl_sgemm('N', 'T', N, N, d, 1.0f, go, D, v, width, 0.0f, g, N);
            for (int64_t i = 0; i < N; i++) {
                float *wi = w + i * N, *gi = g + i * N, dot = 0.0f;
                for (int64_t j = 0; j < N; j++) dot += wi[j] * gi[j];
                for (int64_t j = 0; j < N; j++) gi[j] = wi[j] * (gi[j] - dot);
            }
            dnnl_sgemm('N', 'N', N, d, N, scale, g, N, k, width, 0.0f, gq, width);
            dnnl_sgemm('T', 'N', N, d, N, scale, g, N, q, width, 0.0f, gk, width);
        }
    }
}

}  // namespace jclip
