// One iteration of a method for z = f(z), of some rows of a batch: what is left, and the next iterates. Nothing here
// knows of the map. Vectors are of type R, their inner products are summed up in float64, block by block.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#define TEXT(x) #x
#define SUMMED(x, y) _Pragma(TEXT(omp simd reduction(+ : x, y)))
#define SIDE_BY_SIDE _Pragma("omp simd")

constexpr int64_t BLOCK = 512;
constexpr double TINY = 1e-200;

struct Iteration {
    const void *z, *fz, *z_before, *fz_before;  // (b, n) each; before the first iteration there is none before
    void *next;                                 // (b, n)
    void *residuals, *images;                   // rings of vectors (b, memory, n)
    double *gram;                               // (b, memory, memory)
    double *norms;                              // (b, 2), of f(z) - z and of f(z)
    int64_t *starts;                            // (b,), Broyden's first step that counts
    int64_t n, memory, count, slot;             // slot: where the newest vector is or goes, of count
    double weight, floor;                       // of f(z) in a step without history; of the scaled diagonal
};

// Sums of the products of two vectors with each of the first `count` of a ring.
template <class R>
static void products(const R *ring, const R *x, const R *y, int64_t n, int64_t from, int64_t to, int64_t count, double *xs, double *ys) {
    for (int64_t j = 0; j < count; ++j) {
        const R *v = ring + j * n + from;
        R a = 0, b = 0;
        SUMMED(a, b)
        for (int64_t i = 0; i < to - from; ++i) {
            a += x[i] * v[i];
            b += y[i] * v[i];
        }
        xs[j] += a;
        ys[j] += b;
    }
}

// x of A x = b in the place of b, by elimination with the largest pivots; A (m, m) is overwritten.
static void solve(double *a, double *b, int64_t m) {
    for (int64_t k = 0; k < m; ++k) {
        int64_t p = k;
        for (int64_t i = k + 1; i < m; ++i)
            if (std::fabs(a[i * m + k]) > std::fabs(a[p * m + k])) p = i;
        if (p != k) {
            for (int64_t j = k; j < m; ++j) std::swap(a[k * m + j], a[p * m + j]);
            std::swap(b[k], b[p]);
        }
        for (int64_t i = k + 1; i < m; ++i) {
            double factor = a[i * m + k] / a[k * m + k];
            for (int64_t j = k + 1; j < m; ++j) a[i * m + j] -= factor * a[k * m + j];
            b[i] -= factor * b[k];
        }
    }
    for (int64_t k = m - 1; k >= 0; --k) {
        for (int64_t j = k + 1; j < m; ++j) b[k] -= a[k * m + j] * b[j];
        b[k] /= a[k * m + k];
    }
}

// f(z) - z into r, and the squares of its norm and of that of f(z).
template <class R> static void residual(const R *z, const R *fz, R *r, int64_t count, double *squares) {
    R left = 0, whole = 0;
    SUMMED(left, whole)
    for (int64_t i = 0; i < count; ++i) {
        R d = fz[i] - z[i];
        r[i] = d;
        left += d * d;
        whole += fz[i] * fz[i];
    }
    squares[0] += left;
    squares[1] += whole;
}

// start + sum_j weights[j] ring[j], in the place of start, of the elements from ... to.
template <class R>
static void combine(const R *ring, const double *weights, int64_t n, int64_t from, int64_t to, int64_t count, R *start) {
    for (int64_t j = 0; j < count; ++j) {
        const R *v = ring + j * n + from;
        R w = (R)weights[j];
        SIDE_BY_SIDE
        for (int64_t i = 0; i < to - from; ++i) start[i] += w * v[i];
    }
}

template <class R> struct Row {
    const R *z, *fz, *z_before, *fz_before;
    R *next, *residuals, *images;  // Broyden's ring, of steps, is the first one
    double *gram, squares[2] = {0.0, 0.0};
    const Iteration &job;

    Row(const Iteration &job, int64_t row) : job(job) {
        int64_t at = row * job.n, ring = at * job.memory;
        z = (const R *)job.z + at, fz = (const R *)job.fz + at;
        z_before = (const R *)job.z_before + at, fz_before = (const R *)job.fz_before + at;
        next = (R *)job.next + at;
        residuals = (R *)job.residuals + ring, images = (R *)job.images + ring;
        gram = job.gram + row * job.memory * job.memory;
    }

    void note(const double *newest) {
        for (int64_t j = 0; j < job.count; ++j) gram[job.slot * job.memory + j] = gram[j * job.memory + job.slot] = newest[j];
    }

    R image(const R *z, const R *fz, int64_t i) const { return fz[i] - (R)(1.0 - job.weight) * (fz[i] - z[i]); }

    void picard() {
        R r[BLOCK];
        for (int64_t from = 0; from < job.n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, job.n);
            residual(z + from, fz + from, r, to - from, squares);
            SIDE_BY_SIDE
            for (int64_t i = from; i < to; ++i) next[i] = image(z, fz, i);
        }
    }

    void anderson(double *work) {
        int64_t m = job.count, n = job.n;
        double *newest = work, *right = newest + m, *scale = right + m, *scaled = scale + m;
        std::fill(newest, scale, 0.0);
        R r[BLOCK];
        for (int64_t from = 0; from < n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, n);
            residual(z + from, fz + from, r, to - from, squares);
            R *change = residuals + job.slot * n + from;
            const R *zb = z_before + from, *fb = fz_before + from;
            SIDE_BY_SIDE
            for (int64_t i = 0; i < to - from; ++i) change[i] = r[i] - (fb[i] - zb[i]);
            products(residuals, change, r, n, from, to, m, newest, right);
        }
        note(newest);
        for (int64_t i = 0; i < m; ++i) scale[i] = 1.0 / std::sqrt(std::max(gram[i * job.memory + i], TINY));
        for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < m; ++j) scaled[i * m + j] = gram[i * job.memory + j] * (scale[i] * scale[j]);
            scaled[i * m + i] += job.floor;
            right[i] *= -scale[i];
        }
        solve(scaled, right, m);
        for (int64_t i = 0; i < m; ++i) right[i] *= scale[i];
        for (int64_t from = 0; from < n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, n);
            R *change = images + job.slot * n;
            SIDE_BY_SIDE
            for (int64_t i = from; i < to; ++i) {
                R now = image(z, fz, i);
                change[i] = now - image(z_before, fz_before, i);
                next[i] = now;
            }
            combine(images, right, n, from, to, m, next + from);
        }
    }

    // The steps s_0 ... s_(count - 1) are there; a new one goes behind them, unless the ring is full and begins anew.
    void broyden(double *work, int64_t &start) {
        int64_t m = job.count, n = job.n, last = m - 1;
        double *newest = work, *right = newest + m, *weights = right + m, denominator = 1.0;
        std::fill(newest, weights + m, 0.0);
        R r[BLOCK];
        for (int64_t from = 0; from < n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, n);
            residual(z + from, fz + from, r, to - from, squares);
            if (m) products(residuals, residuals + last * n + from, r, n, from, to, m, newest, right);
        }
        bool full = m == job.memory;
        if (m) note(newest);
        if (full) start = 0;
        if (m && !full) {
            for (int64_t i = 0; i < m; ++i) {
                double c = i >= start ? right[i] : 0.0, diagonal = gram[i * job.memory + i];
                for (int64_t j = 0; i >= start && j < i; ++j) c += gram[i * job.memory + j + 1] * right[j];
                right[i] = c / (diagonal > TINY ? diagonal : 1.0);
            }
            denominator = 1.0 - right[last];
            bool sound = std::fabs(denominator) > 1e-3;  // not where it is NaN
            for (int64_t i = 1; sound && i < m; ++i) weights[i] = right[i - 1];
            if (!sound) start = m, denominator = 1.0;
        }
        R *step = residuals + (full ? 0 : m) * n;
        double again[2];
        for (int64_t from = 0; from < n; from += BLOCK) {
            int64_t to = std::min(from + BLOCK, n);
            residual(z + from, fz + from, r, to - from, again);
            if (m && !full) combine(residuals, weights, n, from, to, m, r);
            SIDE_BY_SIDE
            for (int64_t i = from; i < to; ++i) {
                step[i] = r[i - from] / (R)denominator;
                next[i] = z[i] + step[i];
            }
        }
    }
};

enum Method { PICARD, ANDERSON, BROYDEN };

template <class R> static void iterate(const Iteration &job, int64_t method, int64_t first, int64_t stop) {
    std::vector<double> work((job.memory + 4) * (job.memory + 4));
    for (int64_t row = first; row < stop; ++row) {
        Row<R> at(job, row);
        if (method == BROYDEN)
            at.broyden(work.data(), job.starts[row]);
        else if (method == ANDERSON && job.count > 0)
            at.anderson(work.data());
        else
            at.picard();
        for (int k = 0; k < 2; ++k) job.norms[2 * row + k] = std::sqrt(at.squares[k]);
    }
}

extern "C" void iterate32(const Iteration *job, int64_t method, int64_t first, int64_t stop) {
    iterate<float>(*job, method, first, stop);
}

extern "C" void iterate64(const Iteration *job, int64_t method, int64_t first, int64_t stop) {
    iterate<double>(*job, method, first, stop);
}
