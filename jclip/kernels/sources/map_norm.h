// Batch norm of channels-last maps, R rows of C channels, and what follows it in a ResNet: y = [relu](norm(x) + residual).
// Maps are float or bfloat16, statistics, parameters and sums are float. Sums are of blocks of rows, which stay in the cache,
// then of blocks in float64, thread by thread in order.
#pragma once
#include <omp.h>
#include "onednn.h"

namespace jclip {

inline int64_t rows_of_block(int64_t C) { return std::max<int64_t>(32, 8192 / C); }

// `work(thread, first, end)` for each block of rows, those of a thread one after the other.
template <class F>
inline void for_blocks(int64_t R, int64_t C, F work) {
    const int64_t rows = rows_of_block(C), blocks = (R + rows - 1) / rows;
    #pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        work(omp_get_thread_num(), block * rows, std::min(R, (block + 1) * rows));
}

// How many values of a channel were seen, their mean and their summed squares from it.
struct Moments {
    double count = 0;
    std::vector<double> mean, squares;

    explicit Moments(int64_t C) : mean(C, 0.0), squares(C, 0.0) {}

    // Chan, Golub & LeVeque's sum of two such.
    template <class M>
    void add(double more, const M* other_mean, const M* other_squares) {
        if (more == 0) return;
        const double total = count + more, share = more / total, weight = count * share;
        for (size_t c = 0; c < mean.size(); c++) {
            const double away = other_mean[c] - mean[c];
            mean[c] += away * share;
            squares[c] += other_squares[c] + away * away * weight;
        }
        count = total;
    }
};

template <class X>
inline void add_row(const X* __restrict__ x, float* __restrict__ sum, int64_t C) {
    for (int64_t c = 0; c < C; c++) sum[c] += widen(x[c]);
}

template <class X>
inline void add_squares(const X* __restrict__ x, const float* __restrict__ mean, float* __restrict__ sum, int64_t C) {
    for (int64_t c = 0; c < C; c++) sum[c] += (widen(x[c]) - mean[c]) * (widen(x[c]) - mean[c]);
}

template <class X>
void channel_moments(const X* x, int64_t R, int64_t C, float* mean, float* variance) {
    const int threads = omp_get_max_threads();
    std::vector<Moments> parts(threads, Moments(C));
    std::vector<float> sums(size_t(threads) * 2 * C);
    for_blocks(R, C, [&](int thread, int64_t first, int64_t end) {
        float *sum = sums.data() + size_t(thread) * 2 * C, *squares = sum + C;
        std::fill(sum, sum + 2 * C, 0.0f);
        for (int64_t r = first; r < end; r++) add_row(x + r * C, sum, C);
        for (int64_t c = 0; c < C; c++) sum[c] /= float(end - first);
        for (int64_t r = first; r < end; r++) add_squares(x + r * C, sum, squares, C);
        parts[thread].add(double(end - first), sum, squares);
    });
    Moments all(C);
    for (const Moments& part : parts) all.add(part.count, part.mean.data(), part.squares.data());
    for (int64_t c = 0; c < C; c++) {
        mean[c] = float(all.mean[c]);
        variance[c] = float(all.squares[c] / double(R));
    }
}

template <class X>
inline void norm_row(const X* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ factor,
                     const float* __restrict__ shift, float* __restrict__ y, int64_t C) {
    for (int64_t c = 0; c < C; c++) y[c] = (widen(x[c]) - mean[c]) * factor[c] + shift[c];
}

template <class X>
inline void narrow_row(const float* __restrict__ x, X* __restrict__ y, int64_t C) {
    for (int64_t c = 0; c < C; c++) narrow(x[c], y[c]);
}

inline std::vector<float> norm_factors(const float* weight, const float* variance, int64_t C, double eps) {
    std::vector<float> factor(C);
    for (int64_t c = 0; c < C; c++) factor[c] = float((weight ? weight[c] : 1.0f) / std::sqrt(double(variance[c]) + eps));
    return factor;
}

// `own_mean`, `own_variance`: the statistics to take; none: the batch's. Those taken are handed out as well.
template <class X>
void map_norm_forward(const X* x, const float* weight, const float* bias, const float* own_mean, const float* own_variance,
                      const void* residual, X* y, float* mean, float* variance, int64_t R, int64_t C, double eps, double relu) {
    if (own_mean) {
        std::copy(own_mean, own_mean + C, mean);
        std::copy(own_variance, own_variance + C, variance);
    } else {
        channel_moments(x, R, C, mean, variance);
    }
    const std::vector<float> factor = norm_factors(weight, variance, C, eps);
    const X* added = static_cast<const X*>(residual);
    std::vector<float> buffers(size_t(omp_get_max_threads()) * C);
    for_blocks(R, C, [&](int thread, int64_t first, int64_t end) {
        float* row = buffers.data() + size_t(thread) * C;
        for (int64_t r = first; r < end; r++) {
            norm_row(x + r * C, mean, factor.data(), bias, row, C);
            if (added) add_row(added + r * C, row, C);
            if (relu != 0)
                for (int64_t c = 0; c < C; c++) row[c] = std::max(row[c], 0.0f);
            narrow_row(row, y + r * C, C);
        }
    });
}

// What the backward pass of a norm reads.
template <class X>
struct NormGradient {
    const X *x, *y, *grads[3];
    const float *mean, *factor, *bias;
    int64_t C;
    bool relu;

    // What flows to norm(x) + residual of a row: the sum of the gradients of y's readers, where ReLU let it through.
    void flowing(int64_t r, float* __restrict__ g, float* __restrict__ before) const {
        for (int64_t c = 0; c < C; c++) g[c] = 0.0f;
        for (const X* grad : grads)
            if (grad) add_row(grad + r * C, g, C);
        if (!relu) return;
        if (y) {
            const X* __restrict__ seen = y + r * C;
            for (int64_t c = 0; c < C; c++) g[c] = widen(seen[c]) > 0.0f ? g[c] : 0.0f;
        } else {
            norm_row(x + r * C, mean, factor, bias, before, C);
            for (int64_t c = 0; c < C; c++) g[c] = before[c] > 0.0f ? g[c] : 0.0f;
        }
    }
};

template <class X>
inline void add_products(const float* __restrict__ g, const X* __restrict__ x, const float* __restrict__ mean,
                         float* __restrict__ sum, float* __restrict__ inner, int64_t C) {
    for (int64_t c = 0; c < C; c++) {
        sum[c] += g[c];
        inner[c] += g[c] * (widen(x[c]) - mean[c]);
    }
}

// factor (g - a - (x - mean) n)
template <class X>
inline void input_row(const float* __restrict__ g, const X* __restrict__ x, const float* __restrict__ mean,
                      const float* __restrict__ factor, const float* __restrict__ a, const float* __restrict__ n,
                      X* __restrict__ grad_x, int64_t C) {
    for (int64_t c = 0; c < C; c++) narrow(factor[c] * (g[c] - a[c] - (widen(x[c]) - mean[c]) * n[c]), grad_x[c]);
}

// dx = w f (g - mean(g) - n mean(g n)) with n = (x - mean) f and f = 1 / sqrt(variance + eps), with statistics that are not
// the batch's dx = w f g; dw = sum g n, db = sum g. `given`: whether they aren't. y: with a residual, which g is for, too.
template <class X>
void map_norm_gradients(const X* x, const X* y, const float* weight, const float* bias, const float* mean,
                        const float* variance, const X* g0, const X* g1, const X* g2, X* grad_x, float* grad_weight,
                        float* grad_bias, X* grad_residual, int64_t R, int64_t C, double eps, bool relu, bool given) {
    const std::vector<float> factor = norm_factors(weight, variance, C, eps), scale = norm_factors(nullptr, variance, C, eps);
    const NormGradient<X> flow{x, y, {g0, g1, g2}, mean, factor.data(), bias, C, relu};
    const int threads = omp_get_max_threads();
    std::vector<double> totals(size_t(threads) * 2 * C, 0.0);
    std::vector<float> buffers(size_t(threads) * 4 * C);
    for_blocks(R, C, [&](int thread, int64_t first, int64_t end) {
        float *g = buffers.data() + size_t(thread) * 4 * C, *before = g + C, *sums = before + C;
        std::fill(sums, sums + 2 * C, 0.0f);
        for (int64_t r = first; r < end; r++) {
            flow.flowing(r, g, before);
            if (grad_residual) narrow_row(g, grad_residual + r * C, C);
            add_products(g, x + r * C, mean, sums, sums + C, C);
        }
        double* total = totals.data() + size_t(thread) * 2 * C;
        for (int64_t c = 0; c < 2 * C; c++) total[c] += sums[c];
    });
    std::vector<float> a(C, 0.0f), n(C, 0.0f);
    for (int64_t c = 0; c < C; c++) {
        double sum = 0.0, inner = 0.0;
        for (int t = 0; t < threads; t++) {
            sum += totals[size_t(t) * 2 * C + c];
            inner += totals[size_t(t) * 2 * C + C + c];
        }
        grad_weight[c] = float(inner * scale[c]);
        grad_bias[c] = float(sum);
        if (given) continue;
        a[c] = float(sum / R);
        n[c] = float(inner / R * scale[c] * scale[c]);
    }
    for_blocks(R, C, [&](int thread, int64_t first, int64_t end) {
        float *g = buffers.data() + size_t(thread) * 4 * C, *before = g + C;
        for (int64_t r = first; r < end; r++) {
            if (grad_residual) {
                std::fill(g, g + C, 0.0f);
                add_row(grad_residual + r * C, g, C);
            } else {
                flow.flowing(r, g, before);
            }
            input_row(g, x + r * C, mean, factor.data(), a.data(), n.data(), grad_x + r * C, C);
        }
    });
}

template <class X>
void map_norm_backward(const X* x, const float* weight, const float* bias, const float* mean, const float* variance,
                       const X* g0, const void* g1, const void* g2, X* grad_x, float* grad_weight, float* grad_bias,
                       int64_t R, int64_t C, double eps, double relu, double given) {
    map_norm_gradients<X>(x, nullptr, weight, bias, mean, variance, g0, static_cast<const X*>(g1), static_cast<const X*>(g2),
                          grad_x, grad_weight, grad_bias, nullptr, R, C, eps, relu != 0, given != 0);
}

// The same with a residual.
template <class X>
void map_norm_added_backward(const X* x, const float* weight, const float* bias, const float* mean, const float* variance,
                             const X* y, const X* g0, const void* g1, const void* g2, X* grad_x, float* grad_weight,
                             float* grad_bias, X* grad_residual, int64_t R, int64_t C, double eps, double relu, double given) {
    map_norm_gradients<X>(x, y, weight, bias, mean, variance, g0, static_cast<const X*>(g1), static_cast<const X*>(g2), grad_x,
                          grad_weight, grad_bias, grad_residual, R, C, eps, relu != 0, given != 0);
}

}  // namespace jclip
