// The loop over the steps of one solve, and the gradient back over those that were accepted. What stands above in the
// file gives R, N, the method (S, FSAL, DENSE, POWERS, A, B, C, E, D), the sizes of memory, once, field and pull, and control.hpp.

enum Keep : int64_t { NOTHING, STATES, EVALUATIONS };

constexpr int64_t SLOT = SAVED + (NEEDS_STATE ? ROOM : 0);  // of an evaluation
constexpr int64_t SLOTS = FSAL ? S - 1 : S;                 // of a step
constexpr int64_t FIRST_CHUNK = 8;                          // steps in the first piece of memory; each is twice the last

struct Chunk {
    double *steps;  // start and size of each
    R *states, *evaluations;
};

struct Job {
    Control control;
    int64_t planned, keep;
    const double *plan;  // start, size and end of each planned step
    const R *y0;
    const void *const *inputs;
    R *work, *ys;  // states at the save times, the first of them y0
    double *fractions;
    int64_t *in_step;
    Chunk chunks[40];
    int64_t n_chunks, started, evaluations;
    Pace pace;
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

static double estimated(Job &job, const R *y, const R *k) {
    const Control &control = job.control;
    R *scale = states_of(job, 1), *argument = states_of(job, 2), *other = states_of(job, 3);
    for (int i = 0; i < N; ++i) scale[i] = fabs(y[i]) * R(control.rtol) + R(control.atol);
    const double d0 = measured(y, scale), d1 = measured(k, scale);
    if (!std::isfinite(d0) || !std::isfinite(d1)) return NAN;
    const double h0 = probed_size(control, d0, d1), signed_h0 = control.direction() * h0;
    for (int i = 0; i < N; ++i) argument[i] = y[i] + R(signed_h0) * k[i];
    evaluate(job, control.t0 + signed_h0, argument, slots_of(job), other);
    for (int i = 0; i < N; ++i) other[i] -= k[i];
    return first_size(control, d1, measured(other, scale) / h0, h0);
}

static void save(Job &job, double t, double h, double t_next, const R *y, const R *y_next) {
    const Control &control = job.control;
    Pace &pace = job.pace;
    const double direction = control.direction();
    while (pace.next <= control.saves && (control.ts[pace.next] - t_next) * direction <= 0) {
        const double s = control.ts[pace.next], fraction = (s - t_next) * direction >= 0 ? 1 : (s - t) / h;
        R *out = job.ys + pace.next * int64_t(N);
        std::memcpy(out, fraction == 1 ? y_next : y, sizeof(R) * N);
        if (fraction != 1) {
            double weights[S];
            weights_at(fraction, weights);
            for (int j = 0; j < S; ++j)
                if (weights[j] != 0) add(out, h * weights[j], stage(job, j));
        }
        job.fractions[pace.next] = fraction;
        job.in_step[pace.next] = pace.accepted;
        ++pace.next;
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

static void start(Job &job) {
    const Control &control = job.control;
    Pace &pace = job.pace;
    once(job.inputs, consts_of(job));
    std::memcpy(states_of(job, 0), job.y0, sizeof(R) * N);
    std::memcpy(job.ys, job.y0, sizeof(R) * N);
    job.started = pace.next = 1;
    pace.t = control.t0;
    if (job.planned) return;
    R *slot = slot_of(job, 0, 0), *argument = argument_of(slot, states_of(job, 2));
    std::memcpy(argument, job.y0, sizeof(R) * N);
    evaluate(job, control.t0, argument, slot, stage(job, 0));
    pace.h = std::isnan(control.first) ? estimated(job, states_of(job, 0), stage(job, 0)) : control.first;
    pace.h *= control.direction();
    if (std::isnan(pace.h)) pace.status = DIVERGED;
}

// Whether the error of a step from y to y_next is tolerated; else the next one is shorter.
static bool accepts(Job &job, double h, const R *y, const R *y_next) {
    const Control &control = job.control;
    R *scale = states_of(job, 3), *error = states_of(job, 2);
    for (int i = 0; i < N; ++i) scale[i] = R(control.atol) + largest(fabs(y[i]), fabs(y_next[i])) * R(control.rtol);
    combine<S + 1>(nullptr, h, stage(job, 0), error);
    job.pace.ratio = measured(error, scale);
    if (job.pace.ratio <= 1) return true;
    if (fabs(h) > control.floor) {
        after_rejection(control, job.pace, h);
        return false;
    }
    if (!std::isfinite(job.pace.ratio)) job.pace.status = DIVERGED;
    return true;
}

// On with a solve, until it ends or there is no more room for steps.
extern "C" int64_t advance(Job *of) {
    Job &job = *of;
    Pace &pace = job.pace;
    if (!job.started) start(job);
    R *y = states_of(job, 0), *y_next = states_of(job, 1), *ks = stage(job, 0);
    bool known = pace.accepted > 0 ? FSAL : !job.planned;  // whether the first stage is there
    while (pace.status == SUCCESS && pace.next <= job.control.saves) {
        if (pace.accepted >= FIRST_CHUNK * ((int64_t(1) << job.n_chunks) - 1)) return NO_ROOM;
        double h, t_next;
        if (job.planned) {
            const double *plan = job.plan + 3 * pace.accepted;
            pace.t = plan[0], h = plan[1], t_next = plan[2];
        } else if ((pace.status = propose(job.control, pace, h, t_next)) != SUCCESS)
            break;
        if (known)
            stages<1, LAST>(job, pace.accepted, pace.t, h, y);
        else
            stages<0, LAST>(job, pace.accepted, pace.t, h, y);
        combine<S>(y, h, ks, y_next);
        if (FSAL) {
            R *slot = slot_of(job, pace.accepted, S - 1), *argument = argument_of(slot, y_next);
            if (argument != y_next) std::memcpy(argument, y_next, sizeof(R) * N);
            evaluate(job, pace.t + h, argument, slot, stage(job, S - 1));
        }
        known = true;
        if (!job.planned && !accepts(job, h, y, y_next)) continue;
        if (pace.status != SUCCESS) break;
        double *step = step_of(job, pace.accepted);
        step[0] = pace.t, step[1] = h;
        if (job.keep == STATES) std::memcpy(state_of(job, pace.accepted), y, sizeof(R) * N);
        save(job, pace.t, h, t_next, y, y_next);
        if (job.planned)
            ++pace.accepted;
        else
            after_acceptance(job.control, pace, h);
        pace.t = t_next;
        std::memcpy(y, y_next, sizeof(R) * N);
        if (FSAL) std::memcpy(ks, stage(job, S - 1), sizeof(R) * N);
        known = FSAL;
    }
    return pace.status;
}

// The gradient.

// The product of an evaluation's derivatives with a cotangent: added to what is given by its argument.
static void pulled(Job &job, double t, const R *slot, const R *argument, const R *g, R *by_argument, R *const *by) {
    pull(R(t), argument, job.inputs, consts_of(job), slot, temporary(job), g, by_argument, by);
}

// Saved states inside step i, as cotangents of its start and its stages; returns whether there is one.
static bool inside(Job &job, int64_t i, const R *cotangents, R *by_start, R *by_end, R *by_stages, int from) {
    bool any = false;
    int64_t s = std::lower_bound(job.in_step + 1, job.in_step + job.pace.next, i) - job.in_step;
    for (; s < job.pace.next && job.in_step[s] == i; ++s) {
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

// Cotangents of the saved states (saves + 1, N) -> the gradient by y0; those by the inputs are added up. Returns the
// number of products. `end` is the last state.
extern "C" int64_t gradient(Job *of, const R *cotangents, R *by_y, R *const *by, const R *end) {
    Job &job = *of;
    int64_t products = 0;
    R *by_next = states_of(job, 1), *by_start = states_of(job, 3), *by_argument = states_of(job, 0);
    R *by_stages = states_of(job, 4 + S);
    std::memset(by_next, 0, sizeof(R) * N);
    once(job.inputs, consts_of(job));
    for (int64_t i = job.pace.accepted; i-- > 0;) {
        const double t = step_of(job, i)[0], h = step_of(job, i)[1];
        std::memset(by_stages, 0, sizeof(R) * S * ROOM);
        std::memset(by_start, 0, sizeof(R) * N);
        const bool within = inside(job, i, cotangents, by_start, by_next, by_stages, 0);
        if (FSAL && within && i == job.pace.accepted - 1) {  // its last stage is no other step's first one
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
