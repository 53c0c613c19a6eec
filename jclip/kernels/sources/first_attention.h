// What the first token of each sequence takes from its tokens, from before the projections to q, k, v on. With one query a
// head, keys and values need not be made: q (W_k x) = (W_k^T q) x, and the sum over tokens of w W_v x is W_v (sum of w x).
// A key's bias adds the same to all scores of a query, so that the softmax does not see it.
#pragma once
#include "attention.h"
#include "dropout.h"
#include "rows.h"

namespace jclip {

// x (T, D), table (rows, D): what a token's place adds to it for q and k; weight (3D, D), bias (3D,); starts (B + 1,),
// places (T,), keep (T,) 0 or 1.
struct FirstQueries {
    const float *x, *table, *weight, *bias;
    const int32_t *starts, *places;
    const float* keep;
    int64_t B, rows, D, H, d;
    double rate, seed;
    int64_t first;  // the number of the first sequence, for what is drawn
    // start (B, D); q (B, D); u (B, H, D): W_k^T q; weights and those not dropped, of each sequence (H, N); mixed (B, H, D):
    // tokens by these; total (B, H): their sums
    std::vector<float> start, q, u, weights, dropped, mixed, total;

    int64_t length(int64_t b) const { return starts[b + 1] - starts[b]; }

    void moved(int64_t b, std::vector<float>& to) const {
        to.resize(length(b) * D);
        for (int64_t j = 0; j < length(b); j++) {
            const float *own = x + (starts[b] + j) * D, *place = table + places[starts[b] + j] * D;
            for (int64_t c = 0; c < D; c++) to[j * D + c] = own[c] + place[c];
        }
    }

    void attend() {
        start.resize(B * D);
        q.resize(B * D);
        u.resize(B * H * D);
        mixed.resize(B * H * D);
        weights.resize(starts[B] * H);
        dropped.resize(rate > 0 ? weights.size() : 0);
        total.resize(B * H);
        for (int64_t b = 0; b < B; b++)
            for (int64_t c = 0; c < D; c++)
                start[b * D + c] = x[starts[b] * D + c] + table[places[starts[b]] * D + c];
        dnnl_sgemm('N', 'T', B, D, D, 1.0f, start.data(), D, weight, D, 0.0f, q.data(), D);
        for (int64_t b = 0; b < B; b++)
            for (int64_t c = 0; c < D; c++) q[b * D + c] += bias[c];
        for (int64_t h = 0; h < H; h++)
            dnnl_sgemm('N', 'N', B, D, d, 1.0f, q.data() + h * d, D, weight + (D + h * d) * D, D, 0.0f, u.data() + h * D,
                       H * D);
        #pragma omp parallel
        {
            std::vector<float> keys;
            #pragma omp for schedule(dynamic)
            for (int64_t b = 0; b < B; b++) attend(b, keys);
        }
    }

    float* dropped_of(int64_t b) { return (rate > 0 ? dropped : weights).data() + starts[b] * H; }

    // Which weight is dropped: by its place in the table (heads of all samples, rows, rows).
    int64_t drawn(int64_t b, int64_t h) const { return (((first + b) * H + h) * rows + places[starts[b]]) * rows; }

private:
    void attend(int64_t b, std::vector<float>& keys) {
        const int64_t N = length(b);
        const float scale = 1.0f / std::sqrt(float(d));
        const Dropout dropout(rate, seed);
        float *w = weights.data() + starts[b] * H, *p = dropped_of(b);
        const std::vector<int64_t> others(places + starts[b], places + starts[b + 1]);
        moved(b, keys);
        dnnl_sgemm('N', 'T', H, N, D, 1.0f, u.data() + b * H * D, D, keys.data(), D, 0.0f, w, N);
        for (int64_t h = 0; h < H; h++) {
            for (int64_t j = 0; j < N; j++) w[h * N + j] = keep[starts[b] + j] != 0.0f ? w[h * N + j] : -1e30f;
            softmax(w + h * N, w + h * N, N, N, scale);
            if (rate > 0) dropout.apply(w + h * N, p + h * N, N, drawn(b, h), others.data());
            float sum = 0.0f;
            for (int64_t j = 0; j < N; j++) sum += p[h * N + j];
            total[b * H + h] = sum;
        }
        dnnl_sgemm('N', 'N', H, D, N, 1.0f, p, N, x + starts[b] * D, D, 0.0f, mixed.data() + b * H * D, D);
    }
};

// out (B, D): the heads side by side.
inline void first_attention_forward(const float* x, const float* table, const float* weight, const float* bias,
                                    const int32_t* starts, const int32_t* places, const float* keep, float* out, int64_t B,
                                    int64_t rows, int64_t D, double heads, double rate, double seed, double first) {
    const int64_t H = int64_t(heads), d = D / H;
    FirstQueries in{x, table, weight, bias, starts, places, keep, B, rows, D, H, d, rate, seed, int64_t(first)};
    in.attend();
    for (int64_t h = 0; h < H; h++)
        dnnl_sgemm('N', 'T', B, d, D, 1.0f, in.mixed.data() + h * D, H * D, weight + (2 * D + h * d) * D, D, 0.0f,
                   out + h * d, D);
    for (int64_t b = 0; b < B; b++)
        for (int64_t c = 0; c < D; c++) out[b * D + c] += in.total[b * H + c / d] * bias[2 * D + c];
}

inline void first_attention_backward(const float* x, const float* table, const float* weight, const float* bias,
                                     const int32_t* starts, const int32_t* places, const float* keep, const float* grad,
                                     float* grad_x, float* grad_table, float* grad_weight, float* grad_bias, int64_t B,
                                     int64_t rows, int64_t D, double heads, double rate, double seed, double first) {
    const int64_t H = int64_t(heads), d = D / H;
    const float scale = 1.0f / std::sqrt(float(d));
    FirstQueries in{x, table, weight, bias, starts, places, keep, B, rows, D, H, d, rate, seed, int64_t(first)};
    in.attend();
    std::vector<float> for_mixed(B * H * D), for_u(B * H * D), for_scores(in.weights.size()), for_q(B * D), for_start(B * D);
    std::fill(grad_bias, grad_bias + 3 * D, 0.0f);
    for (int64_t h = 0; h < H; h++) {
        const int64_t value = (2 * D + h * d) * D;
        dnnl_sgemm('N', 'N', B, D, d, 1.0f, grad + h * d, D, weight + value, D, 0.0f, for_mixed.data() + h * D, H * D);
        dnnl_sgemm('T', 'N', d, D, B, 1.0f, grad + h * d, D, in.mixed.data() + h * D, H * D, 0.0f, grad_weight + value, D);
    }
    #pragma omp parallel
    {
        std::vector<float> keys;
        #pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < B; b++) {
            const int64_t N = in.length(b), at = starts[b];
            float *g = for_scores.data() + at * H, *gx = grad_x + at * D;
            const float *w = in.weights.data() + at * H, *p = in.dropped_of(b);
            dnnl_sgemm('N', 'T', H, N, D, 1.0f, for_mixed.data() + b * H * D, D, x + at * D, D, 0.0f, g, N);
            for (int64_t h = 0; h < H; h++) {
                float for_total = 0.0f, dot = 0.0f;
                for (int64_t c = h * d; c < (h + 1) * d; c++) for_total += grad[b * D + c] * bias[2 * D + c];
                for (int64_t j = 0; j < N; j++) g[h * N + j] += for_total;
                for (int64_t j = 0; j < N; j++) dot += p[h * N + j] * g[h * N + j];
                for (int64_t j = 0; j < N; j++) g[h * N + j] = scale * (p[h * N + j] * g[h * N + j] - w[h * N + j] * dot);
            }
            dnnl_sgemm('T', 'N', N, D, H, 1.0f, p, N, for_mixed.data() + b * H * D, D, 0.0f, gx, D);
            dnnl_sgemm('T', 'N', N, D, H, 1.0f, g, N, in.u.data() + b * H * D, D, 1.0f, gx, D);
            in.moved(b, keys);
            dnnl_sgemm('N', 'N', H, D, N, 1.0f, g, N, keys.data(), D, 0.0f, for_u.data() + b * H * D, D);
        }
    }
    for (int64_t h = 0; h < H; h++) {
        const int64_t key = (D + h * d) * D;
        dnnl_sgemm('N', 'T', B, d, D, 1.0f, for_u.data() + h * D, H * D, weight + key, D, 0.0f, for_q.data() + h * d, D);
        dnnl_sgemm('T', 'N', d, D, B, 1.0f, in.q.data() + h * d, D, for_u.data() + h * D, H * D, 0.0f, grad_weight + key, D);
    }
    dnnl_sgemm('N', 'N', B, D, D, 1.0f, for_q.data(), D, weight, D, 0.0f, for_start.data(), D);
    dnnl_sgemm('T', 'N', D, D, B, 1.0f, for_q.data(), D, in.start.data(), D, 0.0f, grad_weight, D);
    for (int64_t b = 0; b < B; b++)
        for (int64_t c = 0; c < D; c++) {
            grad_bias[c] += for_q[b * D + c];
            grad_bias[2 * D + c] += in.total[b * H + c / d] * grad[b * D + c];
            grad_x[starts[b] * D + c] += for_start[b * D + c];
        }

    std::vector<int64_t> sequence(starts[B]);
    for (int64_t b = 0; b < B; b++) std::fill(sequence.begin() + starts[b], sequence.begin() + starts[b + 1], b);
    const Occurrences of(places, starts[B], rows);
    #pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        float* to = grad_table + row * D;
        std::fill(to, to + D, 0.0f);
        for (int64_t i = of.first[row]; i < of.first[row + 1]; i++) {
            const int64_t b = sequence[of.order[i]], j = of.order[i] - starts[b], N = in.length(b);
            for (int64_t h = 0; h < H; h++) {
                const float g = for_scores[starts[b] * H + h * N + j], *u = in.u.data() + (b * H + h) * D;
                for (int64_t c = 0; c < D; c++) to[c] += g * u[c];
            }
            if (j == 0)
                for (int64_t c = 0; c < D; c++) to[c] += for_start[b * D + c];
        }
    }
}

}  // namespace jclip
