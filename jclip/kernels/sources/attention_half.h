// Attention over packed q, k, v in bfloat16, the softmax in float32, one head of one sample per OpenMP iteration: by the
// processor's own dot products of bfloat16 where it has them, else, and where AMX multiplies faster than these, by oneDNN.
#pragma once
#include "attention.h"
#include "attention_dots.h"

namespace jclip {

// With more keys, all of them seen, oneDNN's blocks are as fast: 16.3 ms beside 17.5 at 197, 2.3 beside 2.0 at 50 (32 photos).
const int64_t FEW_KEYS = 128;
const int64_t NEAR_BYTES = 1 << 20;  // what is more does not stay near

// Reads a sample's rows in their order, so that the processor fetches ahead: a head's numbers lie a row's length apart.
template <class X>
inline void bring_near(const X* rows, int64_t count) {
    const auto* bytes = reinterpret_cast<const volatile char*>(rows);
    const int64_t size = count * sizeof(X);
    for (int64_t i = 0; size <= NEAR_BYTES && i < size; i += 64) (void)bytes[i];
}

// The two products of a head in bfloat16, accumulated in float. Made where the threads are at work, for one of them each;
// each brings its own scratch, for they run at the same time.
struct HeadProducts {
    dnnl::memory::desc q, k, scores, weights, v, out, score_scratch, mix_scratch;
    dnnl::matmul score, mix;
};

inline HeadProducts& head_products(int64_t N, int64_t stride, int64_t width, int64_t D, int64_t d) {
    using namespace dnnl;
    return kept<std::array<int64_t, 4>, HeadProducts>({N, stride, width, d}, [=] {
        const auto half = memory::data_type::bf16, f32 = memory::data_type::f32;
        HeadProducts p;
        p.q = {{N, d}, half, memory::dims{stride, 1}};
        p.k = {{d, N}, half, memory::dims{1, stride}};
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
inline const uint16_t* halves(const X* x) { return reinterpret_cast<const uint16_t*>(x); }

template <class X>
inline uint16_t* halves(X* x) { return reinterpret_cast<uint16_t*>(x); }

// cosines, sines: as of attention_forward
template <class X>
void attention_half_forward(const X* qkv, const float* cosines, const float* sines, X* out, int64_t B, int64_t N,
                            int64_t width, int64_t T, double heads, double causal) {
    const int64_t H = int64_t(heads), D = width / 3, d = D / H;
    const Angles by{cosines, sines, T, d / 2, 1.0f};
    const float scale = 1.0f / std::sqrt(float(d));
#if defined(JCLIP_HALF_DOTS) && !defined(__AMX_BF16__)
    if (d % 2 == 0 && (N <= FEW_KEYS || causal != 0)) {
        #pragma omp parallel
        {
            HeadRows<X> rows(by, N, width, d);
            HalfHead one(N, d, rows.stride, width, D);
            int64_t near = -1;
            #pragma omp for schedule(static)
            for (int64_t head = 0; head < B * H; head++) {
                const int64_t b = head / H, h = head % H;
                if (b != near) bring_near(qkv + b * N * width, N * width);
                near = b;
                const X* own = qkv + b * N * width + h * d;
                rows.take(own, D);
                one.attend(halves(rows.q), halves(rows.k), halves(own + 2 * D), halves(out + b * N * D + h * d), scale, causal != 0);
            }
        }
        return;
    }
#endif
    HeadProducts& products = head_products(N, cosines ? d : width, width, D, d);
    #pragma omp parallel
    {
        HeadRows<X> rows(by, N, width, d);
        HeadWork work(products, N);
        int64_t near = -1;
        #pragma omp for schedule(static)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H;
            if (b != near) bring_near(qkv + b * N * width, N * width);
            near = b;
            const X* own = qkv + b * N * width + h * d;
            rows.take(own, D);
            work.score(rows.q, rows.k);
            for (int64_t i = 0; i < N; i++) work.weigh(i, causal != 0 ? i + 1 : N, scale);
            work.mix(own + 2 * D, out + b * N * D + h * d);
        }
    }
}

}  // namespace jclip
