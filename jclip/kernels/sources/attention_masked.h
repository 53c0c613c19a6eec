// Attention with a key mask and dropout of its weights, one head of one sample per OpenMP iteration. Masked keys are
// neither multiplied nor drawn: those that are kept are laid side by side first.
#pragma once
#include "attention.h"
#include "dropout.h"

namespace jclip {

// One head of one sequence: its queries, and the keys and values that are kept, side by side.
struct SequenceHead {
    std::vector<float> q, k, v;
    std::vector<int64_t> kept, places;  // of the kept: which of the sequence's tokens, and where in the table of draws
    int64_t N, M, d;

    // Tokens' rows are `stride` apart, k and v D and 2D behind q. `moved`: of each place a row that is added to q, k, v, or
    // none; `place`: of each token, or none: its number.
    void gather(const float* qkv, const float* moved, const int32_t* place, const float* keep, int64_t tokens,
                int64_t width, int64_t stride) {
        N = tokens;
        d = width;
        kept.clear();
        places.clear();
        for (int64_t j = 0; j < N; j++) {
            if (keep[j] == 0.0f) continue;
            kept.push_back(j);
            places.push_back(place ? place[j] : j);
        }
        M = kept.size();
        q.resize(N * d);
        k.resize(M * d);
        v.resize(M * d);
        const int64_t D = stride / 3;
        for (int64_t i = 0; i < N; i++) copy(qkv, moved, place ? place[i] : i, i, stride, q.data() + i * d);
        for (int64_t j = 0; j < M; j++) {
            copy(qkv + D, moved ? moved + D : moved, places[j], kept[j], stride, k.data() + j * d);
            copy(qkv + 2 * D, moved ? moved + 2 * D : moved, places[j], kept[j], stride, v.data() + j * d);
        }
    }

    // weights (N, M) = softmax(q k^T / sqrt(d)) over the kept keys.
    void weigh(float* weights) const {
        dnnl_sgemm('N', 'T', N, M, d, 1.0f, q.data(), d, k.data(), d, 0.0f, weights, M);
        const float scale = 1.0f / std::sqrt(float(d));
        for (int64_t i = 0; i < N; i++) softmax(weights + i * M, weights + i * M, M, M, scale);
    }

    // Each weight (head, i, j) is dropped by its place in the table (heads of all samples, rows, rows), whatever is masked.
    void drop(const float* weights, float* to, const Dropout& dropout, const int32_t* place, int64_t head,
              int64_t rows) const {
        for (int64_t i = 0; i < N; i++) {
            const int64_t first = (head * rows + (place ? place[i] : i)) * rows;
            dropout.apply(weights + i * M, to + i * M, M, first, places.data());
        }
    }

    // Rows of gradients of kept keys or values to their places, zeros to the others'.
    void scatter(const float* rows, float* to, int64_t stride) const {
        for (int64_t j = 0, next = 0; j < N; j++) {
            const bool own = next < M && kept[next] == j;
            if (own) std::copy(rows + next * d, rows + (next + 1) * d, to + j * stride);
            else std::fill(to + j * stride, to + j * stride + d, 0.0f);
            next += own;
        }
    }

private:
    void copy(const float* from, const float* moved, int64_t place, int64_t row, int64_t stride, float* to) const {
        from += row * stride;
        if (!moved) {
            std::copy(from, from + d, to);
            return;
        }
        moved += place * stride;
        for (int64_t c = 0; c < d; c++) to[c] = from[c] + moved[c];
    }
};

// Sequences one behind the other, `starts` (B + 1,); or, without `starts` and `places`, each of `rows` tokens.
struct Sequences {
    const int32_t *starts, *places;
    const float* keep;
    int64_t rows;

    int64_t start(int64_t b) const { return starts ? starts[b] : b * rows; }
    int64_t length(int64_t b) const { return starts ? starts[b + 1] - starts[b] : rows; }
    int64_t longest(int64_t B) const {
        int64_t most = 0;
        for (int64_t b = 0; b < B; b++) most = std::max(most, length(b));
        return most;
    }
    const int32_t* place(int64_t b) const { return places ? places + start(b) : nullptr; }
};

// qkv (T, 3D), moved (rows, 3D) or none → out (T, D). first: the number of the first sequence, for what is drawn.
inline void sequences_forward(const float* qkv, const float* moved, const Sequences& in, float* out, int64_t B,
                              int64_t width, int64_t H, double rate, double seed, int64_t first = 0) {
    const int64_t D = width / 3, d = D / H, longest = in.longest(B);
    const Dropout dropout(rate, seed);
    #pragma omp parallel
    {
        SequenceHead one;
        std::vector<float> weights(longest * longest);
        #pragma omp for schedule(dynamic)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H, at = in.start(b);
            float* o = out + at * D + h * d;
            one.gather(qkv + at * width + h * d, moved ? moved + h * d : moved, in.place(b), in.keep + at, in.length(b), d,
                       width);
            if (one.M == 0) {
                for (int64_t i = 0; i < one.N; i++) std::fill(o + i * D, o + i * D + d, 0.0f);
                continue;
            }
            one.weigh(weights.data());
            if (rate > 0) one.drop(weights.data(), weights.data(), dropout, in.place(b), first * H + head, in.rows);
            dnnl_sgemm('N', 'N', one.N, d, one.M, 1.0f, weights.data(), one.M, one.v.data(), d, 0.0f, o, D);
        }
    }
}

inline void sequences_backward(const float* qkv, const float* moved, const Sequences& in, const float* grad,
                               float* grad_qkv, int64_t B, int64_t width, int64_t H, double rate, double seed,
                               int64_t first = 0) {
    const int64_t D = width / 3, d = D / H, longest = in.longest(B);
    const float scale = 1.0f / std::sqrt(float(d));
    const Dropout dropout(rate, seed);
    #pragma omp parallel
    {
        SequenceHead one;
        std::vector<float> weights(longest * longest), dropped(rate > 0 ? longest * longest : 0);
        std::vector<float> inner(longest * longest), rows(longest * d);
        #pragma omp for schedule(dynamic)
        for (int64_t head = 0; head < B * H; head++) {
            const int64_t b = head / H, h = head % H, at = in.start(b);
            const float* go = grad + at * D + h * d;
            float *gq = grad_qkv + at * width + h * d, *gk = gq + D, *gv = gk + D, *g = inner.data();
            one.gather(qkv + at * width + h * d, moved ? moved + h * d : moved, in.place(b), in.keep + at, in.length(b), d,
                       width);
            const int64_t N = one.N, M = one.M;
            if (M == 0) {
                for (int64_t i = 0; i < N; i++) std::fill(gq + i * width, gq + i * width + d, 0.0f);
                one.scatter(nullptr, gk, width);
                one.scatter(nullptr, gv, width);
                continue;
            }
            float *w = weights.data(), *p = w;
            one.weigh(w);
            if (rate > 0) one.drop(w, p = dropped.data(), dropout, in.place(b), first * H + head, in.rows);
            dnnl_sgemm('T', 'N', M, d, N, 1.0f, p, M, go, D, 0.0f, rows.data(), d);
            one.scatter(rows.data(), gv, width);
            dnnl_sgemm('N', 'T', N, M, d, 1.0f, go, D, one.v.data(), d, 0.0f, g, M);
            for (int64_t i = 0; i < N; i++) {
                float *wi = w + i * M, *pi = p + i * M, *gi = g + i * M, dot = 0.0f;
                for (int64_t j = 0; j < M; j++) dot += pi[j] * gi[j];
                for (int64_t j = 0; j < M; j++) gi[j] = pi[j] * gi[j] - wi[j] * dot;
            }
            dnnl_sgemm('N', 'N', N, d, M, scale, g, M, one.k.data(), d, 0.0f, gq, width);
            dnnl_sgemm('T', 'N', M, d, N, scale, g, M, one.q.data(), d, 0.0f, rows.data(), d);
            one.scatter(rows.data(), gk, width);
        }
    }
}

inline void attention_masked_forward(const float* qkv, const float* keep, float* out, int64_t B, int64_t N,
                                     int64_t width, double heads, double rate, double seed) {
    sequences_forward(qkv, nullptr, {nullptr, nullptr, keep, N}, out, B, width, int64_t(heads), rate, seed);
}

inline void attention_masked_backward(const float* qkv, const float* keep, const float* grad, float* grad_qkv, int64_t B,
                                      int64_t N, int64_t width, double heads, double rate, double seed) {
    sequences_backward(qkv, nullptr, {nullptr, nullptr, keep, N}, grad, grad_qkv, B, width, int64_t(heads), rate, seed);
}

}  // namespace jclip
