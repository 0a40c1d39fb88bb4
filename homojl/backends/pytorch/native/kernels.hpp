// Functions of elements and matrix products, for one type R of elements. Nothing here knows of a field or a solve.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

#ifdef __clang__
#define SIDE_BY_SIDE _Pragma("clang loop vectorize(assume_safety)")
#else
#define SIDE_BY_SIDE _Pragma("GCC ivdep")
#endif
#define TEXT(x) #x
#define SUMMED(x) _Pragma(TEXT(omp simd reduction(+ : x)))

using std::fabs;
using std::sqrt;

static inline R largest(R a, R b) { return a != a ? a : (a > b ? a : b); }
static inline R least(R a, R b) { return a != a ? a : (a < b ? a : b); }

template <class To, class From> static inline To bits(From x) {
    To y;
    static_assert(sizeof(To) == sizeof(From), "of one size");
    __builtin_memcpy(&y, &x, sizeof(y));
    return y;
}

// exp by 2^n exp(r) with |r| <= log(2) / 2, the powers of two in halves so that neither overflows before the result does.
static inline float exp_(float x) {
    float c = x > 89.0f ? 89.0f : (x < -104.0f ? -104.0f : x);
    float m = c * 1.44269504088896341f + 12582912.0f;
    int32_t n = bits<int32_t>(m) - 0x4b400000;
    float q = m - 12582912.0f, r = c - q * 0.693359375f + q * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t half = n >> 1;
    return p * bits<float>((half + 127) << 23) * bits<float>((n - half + 127) << 23);
}

static inline double exp_(double x) {
    double c = x > 710.0 ? 710.0 : (x < -746.0 ? -746.0 : x);
    double m = c * 1.4426950408889634074 + 6755399441055744.0;
    int64_t n = bits<int64_t>(m) - 0x4338000000000000LL;
    double q = m - 6755399441055744.0, r = c - q * 6.93145751953125e-1 - q * 1.42860682030941723212e-6;
    double p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    int64_t half = (n - (n < 0)) / 2;
    return p * bits<double>((half + 1023) << 52) * bits<double>((n - half + 1023) << 52);
}

// tanh: an odd rational function where x is small (float: where the result is not 1), else by exp.
static inline float tanh_(float x) {
    float c = x > 7.90531110763549805f ? 7.90531110763549805f : (x < -7.90531110763549805f ? -7.90531110763549805f : x);
    float s = c * c;
    float p = -2.76076847742355e-16f;
    p = p * s + 2.00018790482477e-13f;
    p = p * s - 8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    float q = 1.19825839466702e-06f;
    q = q * s + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return c * p / q;
}

static inline double tanh_(double x) {
    double s = x * x;
    double p = (-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3;
    double q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3;
    double small = x + x * s * p / q;
    double a = fabs(x), large = 1.0 - 2.0 / (exp_(2.0 * (a > 20.0 ? 20.0 : a)) + 1.0);
    large = x < 0 ? -large : large;
    return x != x ? x : (a < 0.625 ? small : large);
}

static inline R sigmoid_(R x) { return R(1) / (R(1) + exp_(-x)); }
#define OF_LIBRARY(name) \
    static inline R name##_(R x) { return std::name(x); }
OF_LIBRARY(log) OF_LIBRARY(log1p) OF_LIBRARY(expm1) OF_LIBRARY(log2) OF_LIBRARY(log10)
OF_LIBRARY(sin) OF_LIBRARY(cos) OF_LIBRARY(tan) OF_LIBRARY(asin) OF_LIBRARY(acos) OF_LIBRARY(atan)
OF_LIBRARY(sinh) OF_LIBRARY(cosh) OF_LIBRARY(erf) OF_LIBRARY(erfc)

// Matrix products: c (m, n) from a (m, k) and b (k, n), whose columns lie side by side. A tile of c stays in registers:
// some rows of so many vectors of elements. What is left over at the right has shorter vectors, down to one element.

enum Start { SET, ADD, BIAS };  // what the sums start from: zero, what is in c, a row for all rows

#if defined(__AVX512F__)
constexpr int WIDEST = 64, TILE = 8;
#elif defined(__AVX__)
constexpr int WIDEST = 32, TILE = 6;
#else
constexpr int WIDEST = 16, TILE = 4;
#endif

template <int BYTES> struct Vector {
    typedef R type __attribute__((vector_size(BYTES), aligned(sizeof(R)), may_alias));
    static constexpr int length = BYTES / sizeof(R);
};

template <int ROWS, int COLUMNS, int BYTES, int K, int AM, int AK, int BK, int CM, int CN, Start START>
static inline __attribute__((always_inline)) void tile(const R *a, const R *b, R *c, const R *bias) {
    typedef typename Vector<BYTES>::type V;
    constexpr int L = Vector<BYTES>::length;
    V sum[ROWS][COLUMNS];
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < COLUMNS; ++j) {
            sum[i][j] = V{};
            if (START == BIAS) sum[i][j] = *(const V *)(bias + j * L);
            if (START == ADD)
                for (int l = 0; l < L; ++l) sum[i][j][l] = c[i * CM + (j * L + l) * CN];
        }
    for (int k = 0; k < K; ++k) {
        V row[COLUMNS];
        for (int j = 0; j < COLUMNS; ++j) row[j] = *(const V *)(b + k * BK + j * L);
        for (int i = 0; i < ROWS; ++i) {
            R x = a[i * AM + k * AK];
            for (int j = 0; j < COLUMNS; ++j) sum[i][j] += x * row[j];
        }
    }
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < COLUMNS; ++j) {
            if (CN == 1)
                *(V *)(c + i * CM + j * L) = sum[i][j];
            else
                for (int l = 0; l < L; ++l) c[i * CM + (j * L + l) * CN] = sum[i][j][l];
        }
}

template <int M, int COLUMNS, int BYTES, int K, int AM, int AK, int BK, int CM, int CN, Start START>
static inline void strip(const R *a, const R *b, R *c, const R *bias) {
    for (int i = 0; i + TILE <= M; i += TILE)
        tile<TILE, COLUMNS, BYTES, K, AM, AK, BK, CM, CN, START>(a + i * AM, b, c + i * CM, bias);
    constexpr int whole = M / TILE * TILE;
    if constexpr (M > whole)
        tile<M - whole, COLUMNS, BYTES, K, AM, AK, BK, CM, CN, START>(a + whole * AM, b, c + whole * CM, bias);
}

template <int M, int N, int K, int AM, int AK, int BK, int CM, int CN, Start START, int BYTES = WIDEST>
static __attribute__((noinline)) void product(const R *a, const R *b, R *c, const R *bias) {
    constexpr int L = BYTES / sizeof(R), two = N / (2 * L) * 2 * L, one = N / L * L;
    for (int j = 0; j < two; j += 2 * L)
        strip<M, 2, BYTES, K, AM, AK, BK, CM, CN, START>(a, b + j, c + j * CN, bias + j);
    if constexpr (one > two) strip<M, 1, BYTES, K, AM, AK, BK, CM, CN, START>(a, b + two, c + two * CN, bias + two);
    if constexpr (N > one && BYTES > 16)
        product<M, N - one, K, AM, AK, BK, CM, CN, START, BYTES / 2>(a, b + one, c + one * CN, bias + one);
    else if constexpr (N > one)
        for (int i = 0; i < M; ++i)
            for (int j = one; j < N; ++j) {
                R sum = START == ADD ? c[i * CM + j * CN] : START == BIAS ? bias[j] : R(0);
                for (int k = 0; k < K; ++k) sum += a[i * AM + k * AK] * b[k * BK + j];
                c[i * CM + j * CN] = sum;
            }
}

// The same where the columns of b, few of them, and the rows of a lie each in one piece.
template <int M, int N, int K, int AM, int BN, int CM, int CN, Start START>
static __attribute__((noinline)) void scalar_products(const R *a, const R *b, R *c, const R *bias) {
    for (int i = 0; i < M; ++i)
        for (int j = 0; j < N; ++j) {
            R sum = 0;
            SUMMED(sum)
            for (int k = 0; k < K; ++k) sum += a[i * AM + k] * b[j * BN + k];
            c[i * CM + j * CN] = sum + (START == ADD ? c[i * CM + j * CN] : START == BIAS ? bias[j] : R(0));
        }
}
