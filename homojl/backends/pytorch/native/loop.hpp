// The loop over the steps of one solve, and the gradient back over those that were accepted. What stands above in the
// file gives R, N, the method (S, FSAL, DENSE, POWERS, A, B, C, E, D), the sizes of memory, and once, field and pull.

enum Status : int64_t { SUCCESS, MAX_STEPS, STEP_TOO_SMALL, DIVERGED, DIVERGED_AT_START, DIVERGED_AT_FLOOR, NO_ROOM = -1 };
enum Keep : int64_t { NOTHING, STATES, EVALUATIONS };

constexpr int64_t SLOT = SAVED + (NEEDS_STATE ? ROOM : 0);  // of an evaluation
constexpr int64_t SLOTS = FSAL ? S - 1 : S;                 // of a step
constexpr int64_t FIRST_CHUNK = 8;                          // steps in the first piece of memory; each is twice the last

struct Chunk {
    double *steps;  // start and size of each
    R *states, *evaluations;
};

struct Job {
    double t0, t1, rtol, atol, first, min_step, max_step, floor;
    double safety, min_factor, max_factor, beta1, beta2, beta3, beta_older, error_order, order;
    int64_t max_steps, saves, planned, keep;
    const double *ts, *plan;  // save times from t0 on; start, size and end of each planned step
    const R *y0;
    const void *const *inputs;
    R *work, *ys;  // states at the save times, the first of them y0
    double *fractions;
    int64_t *in_step;
    Chunk chunks[40];
    int64_t n_chunks;
    // Where it stands.
    int64_t started, accepted, rejected, next, evaluations, status, lands;
    double t, h, wanted, size, ratio, h_old, ratio_old, ratio_older;
};

// Pieces of work memory, each of them ROOM long where it is a state.
static inline R *consts_of(const Job &job) { return job.work; }
static inline R *temporary(const Job &job) { return job.work + CONSTS; }
static inline R *slots_of(const Job &job) { return job.work + CONSTS + WORK; }  // of the evaluations of one step
static inline R *states_of(const Job &job, int i) { return slots_of(job) + (S + 1) * SLOT + i * int64_t(ROOM); }
static inline R *stage(const Job &job, int i) { return states_of(job, 4 + i); }  // 0 to 3: y, next y, argument, other
extern "C" int64_t work_size() { return CONSTS + WORK + (S + 1) * SLOT + (4 + 2 * S) * int64_t(ROOM); }
extern "C" int64_t slot_size() { return SLOT; }

static inline Chunk &chunk_of(Job &job, int64_t step, int64_t &at) {
    int k = 63 - __builtin_clzll(step / FIRST_CHUNK + 1);
    at = step - FIRST_CHUNK * ((int64_t(1) << k) - 1);
    return job.chunks[k];
}
static inline double *step_of(Job &job, int64_t i) {
    int64_t at;
    Chunk &chunk = chunk_of(job, i, at);
    return chunk.steps + 2 * at;
}
static inline R *state_of(Job &job, int64_t i) {
    int64_t at;
    Chunk &chunk = chunk_of(job, i, at);
    return chunk.states + at * N;
}
// Memory of an evaluation: that of a first stage is the step's before, where that has evaluated it.
static inline R *slot_of(Job &job, int64_t i, int j) {
    if (job.keep != EVALUATIONS) return slots_of(job) + j * SLOT;
    int64_t at;
    if (FSAL && j == 0) {
        if (i == 0) return slots_of(job) + S * SLOT;
        Chunk &chunk = chunk_of(job, i - 1, at);
        return chunk.evaluations + (at * SLOTS + SLOTS - 1) * SLOT;
    }
    Chunk &chunk = chunk_of(job, i, at);
    return chunk.evaluations + (at * SLOTS + j - FSAL) * SLOT;
}
static inline R *argument_of(R *slot, R *other) { return NEEDS_STATE ? slot + SAVED : other; }

static double measured(const R *x, const R *scale) {
    double total = 0;
    for (int64_t start = 0; start < N; start += 1024) {
        R part = 0;
        const int64_t stop = std::min<int64_t>(N, start + 1024);
        SUMMED(part)
        for (int64_t i = start; i < stop; ++i) {
            const R q = x[i] / scale[i];
            part += q * q;
        }
        total += part;
    }
    return std::sqrt(total / N);
}

constexpr double weight(int row, int j) { return row < S ? A[row][j] : row == S ? B[j] : E[j]; }

// y, if it is not null, plus h times a row of the method's weights with the stages: S is that of the next state, S + 1
// that of the error.
template <int ROW, std::size_t... J>
static inline void combine(const R *y, double h, const R *ks, R *__restrict out, std::index_sequence<J...>) {
    const R w[] = {R(h * weight(ROW, J))...};
    for (int i = 0; i < N; ++i) {
        R sum = y ? y[i] : R(0);
        (void)std::initializer_list<int>{(weight(ROW, J) != 0 ? (sum += w[J] * ks[J * ROOM + i], 0) : 0)...};
        out[i] = sum;
    }
}
template <int ROW> static void combine(const R *y, double h, const R *ks, R *out) {
    combine<ROW>(y, h, ks, out, std::make_index_sequence<S>());
}

static inline void add(R *to, double factor, const R *x) {
    const R w = R(factor);
    for (int i = 0; i < N; ++i) to[i] += w * x[i];
}

static void evaluate(Job &job, double t, const R *y, R *slot, R *k) {
    field(R(t), y, job.inputs, consts_of(job), slot, temporary(job), k);
    ++job.evaluations;
}

static double first_size(Job &job, const R *y, const R *k) {
    R *scale = states_of(job, 1), *argument = states_of(job, 2), *other = states_of(job, 3);
    const double direction = job.t1 > job.t0 ? 1 : -1, span = fabs(job.t1 - job.t0);
    for (int i = 0; i < N; ++i) scale[i] = fabs(y[i]) * R(job.rtol) + R(job.atol);
    const double d0 = measured(y, scale), d1 = measured(k, scale);
    if (!std::isfinite(d0) || !std::isfinite(d1)) return NAN;
    const double h0 = std::min(d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1, span);
    for (int i = 0; i < N; ++i) argument[i] = y[i] + R(direction * h0) * k[i];
    evaluate(job, job.t0 + direction * h0, argument, slots_of(job), other);
    for (int i = 0; i < N; ++i) other[i] -= k[i];
    const double d2 = measured(other, scale) / h0;
    if (!std::isfinite(d2)) return h0;
    const double steepest = std::max(d1, d2);
    const double h1 = steepest <= 1e-15 ? std::max(1e-6, 1e-3 * h0) : std::pow(0.01 / steepest, 1 / job.order);
    return std::min(std::min(100 * h0, h1), span);
}

static inline double clipped(double x, double low, double high) { return std::min(std::max(x, low), high); }

static void after_rejection(Job &job, double h) {
    const double power = std::pow(job.ratio, 1 / job.error_order) / job.safety;
    job.h = h / clipped(std::isfinite(job.ratio) ? power : INFINITY, 1 + 1e-3, 1 / job.min_factor);
}

static void after_acceptance(Job &job, double h) {
    const bool first = job.accepted == 1;
    double quotient;
    if (first)
        quotient = std::pow(job.ratio, 1 / job.error_order);
    else {
        quotient = std::pow(job.ratio, job.beta1) / std::pow(job.ratio_old, job.beta2);
        if (job.beta_older != 0) quotient *= std::pow(job.ratio_older, job.beta_older);
        if (job.beta3 != 0) quotient /= std::pow(h / job.h_old, job.beta3);
    }
    job.h = h / clipped(quotient / job.safety, 1 / job.max_factor, 1 / job.min_factor);
    const double bounded = std::max(job.ratio, 1e-4);
    job.ratio_older = first ? bounded : job.ratio_old;
    job.h_old = h;
    job.ratio_old = bounded;
    if (job.lands && fabs(job.h) < fabs(job.wanted)) job.h = job.wanted;
}

static void weights_at(double fraction, double *weights) {
    for (int j = 0; j < S; ++j) {
        double w = 0;
        for (int m = POWERS; m-- > 0;) w = (w + D[j][m]) * fraction;
        weights[j] = w;
    }
}

static void save(Job &job, double t, double h, double t_next, const R *y, const R *y_next) {
    const double direction = job.t1 > job.t0 ? 1 : -1;
    while (job.next <= job.saves && (job.ts[job.next] - t_next) * direction <= 0) {
        const double s = job.ts[job.next], fraction = (s - t_next) * direction >= 0 ? 1 : (s - t) / h;
        R *out = job.ys + job.next * int64_t(N);
        if (fraction == 1)
            std::memcpy(out, y_next, sizeof(R) * N);
        else {
            double weights[S];
            weights_at(fraction, weights);
            std::memcpy(out, y, sizeof(R) * N);
            for (int j = 0; j < S; ++j)
                if (weights[j] != 0) add(out, h * weights[j], stage(job, j));
        }
        job.fractions[job.next] = fraction;
        job.in_step[job.next] = job.accepted;
        ++job.next;
    }
}

// Stages J to LAST of step `at`.
template <int J, int LAST> static void stages(Job &job, int64_t at, double t, double h, const R *y) {
    if constexpr (J <= LAST) {
        R *slot = slot_of(job, at, J), *argument = argument_of(slot, states_of(job, 2));
        combine<J>(y, h, stage(job, 0), argument);
        evaluate(job, t + C[J] * h, argument, slot, stage(job, J));
        stages<J + 1, LAST>(job, at, t, h, y);
    }
}
constexpr int LAST = FSAL ? S - 2 : S - 1;  // the last stage that the next state needs

// The size and the end of the next step; what ends the solve instead.
static int64_t propose(Job &job, double &h, double &t_next) {
    if (job.planned) {
        const double *plan = job.plan + 3 * job.accepted;
        job.t = plan[0], h = job.size = plan[1], t_next = plan[2];
        return SUCCESS;
    }
    if (job.accepted + job.rejected >= job.max_steps) return MAX_STEPS;
    const double target = DENSE ? job.t1 : job.ts[job.next];
    h = std::copysign(std::min(std::max(fabs(job.h), job.floor), job.max_step), job.h);
    job.wanted = job.size = h;
    job.lands = fabs(h) >= fabs(target - job.t) * (1 - 1e-12);
    if (!job.lands) {
        const double least = std::nextafter(fabs(job.t), INFINITY) - fabs(job.t);
        if (fabs(h) <= std::max(job.min_step, 8 * least)) return std::isfinite(job.ratio) ? STEP_TOO_SMALL : DIVERGED;
        t_next = job.t + h;
    } else {
        h = job.size = target - job.t;
        t_next = target;
    }
    return SUCCESS;
}

static void start(Job &job) {
    once(job.inputs, consts_of(job));
    std::memcpy(states_of(job, 0), job.y0, sizeof(R) * N);
    std::memcpy(job.ys, job.y0, sizeof(R) * N);
    job.started = 1;
    job.next = 1;
    job.t = job.t0;
    if (job.planned) return;
    R *slot = slot_of(job, 0, 0), *argument = argument_of(slot, states_of(job, 2));
    std::memcpy(argument, job.y0, sizeof(R) * N);
    evaluate(job, job.t0, argument, slot, stage(job, 0));
    job.h = std::isnan(job.first) ? first_size(job, argument, stage(job, 0)) : job.first;
    job.h *= job.t1 > job.t0 ? 1 : -1;
    if (std::isnan(job.h)) job.status = DIVERGED_AT_START;
}

// On with a solve, until it ends or there is no more room for steps.
extern "C" int64_t advance(Job *of) {
    Job &job = *of;
    if (!job.started) start(job);
    R *y = states_of(job, 0), *y_next = states_of(job, 1), *ks = stage(job, 0);
    bool known = job.accepted > 0 ? FSAL : !job.planned;  // whether the first stage is there
    while (job.status == SUCCESS && job.next <= job.saves) {
        if (job.accepted >= FIRST_CHUNK * ((int64_t(1) << job.n_chunks) - 1)) return NO_ROOM;
        double h, t_next;
        if ((job.status = propose(job, h, t_next)) != SUCCESS) break;
        if (known)
            stages<1, LAST>(job, job.accepted, job.t, h, y);
        else
            stages<0, LAST>(job, job.accepted, job.t, h, y);
        combine<S>(y, h, ks, y_next);
        if (FSAL) {
            R *slot = slot_of(job, job.accepted, S - 1), *argument = argument_of(slot, y_next);
            if (argument != y_next) std::memcpy(argument, y_next, sizeof(R) * N);
            evaluate(job, job.t + h, argument, slot, stage(job, S - 1));
        }
        if (!job.planned) {
            R *scale = states_of(job, 3), *error = states_of(job, 2);
            for (int i = 0; i < N; ++i) scale[i] = R(job.atol) + largest(fabs(y[i]), fabs(y_next[i])) * R(job.rtol);
            combine<S + 1>(nullptr, h, ks, error);
            job.ratio = measured(error, scale);
            if (!(job.ratio <= 1)) {
                if (fabs(h) > job.floor) {
                    ++job.rejected;
                    after_rejection(job, h);
                    known = true;
                    continue;
                }
                if (!std::isfinite(job.ratio)) {
                    job.status = DIVERGED_AT_FLOOR;
                    break;
                }
            }
        }
        double *step = step_of(job, job.accepted);
        step[0] = job.t, step[1] = h;
        if (job.keep != NOTHING && state_of(job, 0)) std::memcpy(state_of(job, job.accepted), y, sizeof(R) * N);
        save(job, job.t, h, t_next, y, y_next);
        ++job.accepted;
        if (!job.planned) after_acceptance(job, h);
        job.t = t_next;
        std::memcpy(y, y_next, sizeof(R) * N);
        if (FSAL) std::memcpy(ks, stage(job, S - 1), sizeof(R) * N);
        known = FSAL;
    }
    if (job.status != SUCCESS && job.next <= job.saves) std::memcpy(job.ys + job.next * int64_t(N), y, sizeof(R) * N);
    return job.status;
}

// The gradient.

// The product of an evaluation's derivatives with a cotangent: added to what is given by its argument.
static void pulled(Job &job, double t, const R *slot, const R *argument, const R *g, R *by_argument, R *const *by) {
    pull(R(t), argument, job.inputs, consts_of(job), slot, temporary(job), g, by_argument, by);
}

// Saved states inside step i, as cotangents of its start and its stages; returns whether there is one.
static bool inside(Job &job, int64_t i, const R *cotangents, R *by_start, R *by_end, R *by_stages, int from) {
    bool any = false;
    int64_t s = std::lower_bound(job.in_step + 1, job.in_step + job.next, i) - job.in_step;
    for (; s < job.next && job.in_step[s] == i; ++s) {
        const R *c = cotangents + s * int64_t(N);
        if (job.fractions[s] == 1) {
            if (by_end) add(by_end, 1, c);
            continue;
        }
        any = true;
        double weights[S];
        weights_at(job.fractions[s], weights);
        if (by_start) add(by_start, 1, c);
        for (int j = from; j < S; ++j) add(by_stages + (j - from) * int64_t(ROOM), step_of(job, i)[1] * weights[j], c);
    }
    return any;
}

// Cotangents of the saved states (saves + 1, N), and of the last state of a solve that ended early, or null -> the
// gradient by y0; those by the inputs are added up. Returns the number of products.
extern "C" int64_t gradient(Job *of, const R *cotangents, const R *held, R *by_y, R *const *by, const R *end) {
    Job &job = *of;
    int64_t products = 0;
    R *by_next = states_of(job, 1), *by_start = states_of(job, 3), *by_argument = states_of(job, 0);
    R *by_stages = states_of(job, 4 + S);
    std::memset(by_next, 0, sizeof(R) * N);
    if (held) add(by_next, 1, held);
    once(job.inputs, consts_of(job));
    for (int64_t i = job.accepted; i-- > 0;) {
        const double t = step_of(job, i)[0], h = step_of(job, i)[1];
        std::memset(by_stages, 0, sizeof(R) * S * ROOM);
        std::memset(by_start, 0, sizeof(R) * N);
        const bool within = inside(job, i, cotangents, by_start, by_next, by_stages, 0);
        if (FSAL && within && i == job.accepted - 1) {  // its last stage is no other step's first one
            R *slot = slot_of(job, i, S - 1), *argument = argument_of(slot, const_cast<R *>(end));
            if (job.keep != EVALUATIONS) {
                if (argument != end) std::memcpy(argument, end, sizeof(R) * N);
                evaluate(job, t + h, argument, slot, stage(job, S - 1));
            }
            pulled(job, t + h, slot, argument, by_stages + (S - 1) * int64_t(ROOM), by_argument, by);
            add(by_next, 1, by_argument);
            ++products;
        }
        if (job.keep != EVALUATIONS) stages<0, LAST>(job, i, t, h, state_of(job, i));
        for (int j = 0; j < S; ++j)
            if (B[j] != 0) add(by_stages + j * int64_t(ROOM), h * B[j], by_next);
        add(by_start, 1, by_next);
        if (FSAL && i > 0) inside(job, i - 1, cotangents, nullptr, nullptr, by_stages, S - 1);
        for (int j = LAST; j >= 0; --j) {
            R *slot = slot_of(job, i, j);
            pulled(job, t + C[j] * h, slot, slot + SAVED, by_stages + j * int64_t(ROOM), by_argument, by);
            add(by_start, 1, by_argument);
            for (int l = 0; l < j; ++l)
                if (A[j][l] != 0) add(by_stages + l * int64_t(ROOM), h * A[j][l], by_argument);
            ++products;
        }
        std::memcpy(by_next, by_start, sizeof(R) * N);
    }
    std::memcpy(by_y, by_next, sizeof(R) * N);
    add(by_y, 1, cotangents);
    return products;
}
