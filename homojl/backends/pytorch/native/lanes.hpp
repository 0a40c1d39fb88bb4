// Samples with steps of their own: W of them at a time, side by side in lanes; one that has ended makes room for the next.
// Above in the file stand what loop.hpp needs, W and ROW (elements of a sample; N is W * ROW), and of the inputs that have
// a row for each sample ROWS, how many, and for each its position and size. Element c of lane i lies at c * W + i.

#include <cstdlib>
#include <vector>

struct Lanes {
    Control control;
    int64_t samples, inputs_count;
    const R *y0;
    const void *const *inputs;
    R *ys;              // (saves + 1, samples, ROW)
    double *times;      // of each sample: where it ended, and its first step
    int64_t *counts;    // of each sample: status, accepted and rejected steps
    const R *cotangents;
    R *by_y;
    R *const *by;       // by each wanted input, those with rows whole
    int64_t products, evaluations;
};

struct Entry {  // an accepted step: where it starts, its size, the sample's step before, and the save time that came next
    double t, h;
    int64_t before, next;
};

struct Log {
    std::vector<Entry> entries;
    std::vector<R> states;
    std::vector<int64_t> last;  // of each sample
};

struct Memory {
    R *t, *h, *y, *next, *ks, *argument, *other, *slots, *consts, *work, *by_next, *by_start, *by_stages, *rows, *by_rows;
    std::vector<const void *> inputs;
    std::vector<R *> by;
    void *all;
    explicit Memory(const Lanes &job, bool gradient) {
        int64_t rows_size = 0;
        for (int r = 0; r < ROWS; ++r) rows_size += int64_t(ROW_SIZE[r]) * W;
        const int64_t size = 2 * W + (7 + 2 * S) * int64_t(N) + 2 * rows_size + CONSTS + WORK + (S + 1) * SAVED + 64;
        all = std::aligned_alloc(64, ((size * sizeof(R) + 63) / 64) * 64);
        std::memset(all, 0, size * sizeof(R));
        R *at = (R *)all;
        auto take = [&](int64_t n) { R *p = at; at += n; return p; };
        consts = take(CONSTS), work = take(WORK), slots = take((S + 1) * int64_t(SAVED));
        t = take(W), h = take(W), y = take(N), next = take(N), ks = take(S * int64_t(N)), argument = take(N);
        other = take(N), by_next = take(N), by_start = take(N), by_stages = take(S * int64_t(N));
        rows = take(rows_size), by_rows = take(rows_size);
        inputs.assign(job.inputs, job.inputs + job.inputs_count);
        int64_t offset = 0;
        for (int r = 0; r < ROWS; ++r) inputs[ROW_INPUT[r]] = rows + offset, offset += int64_t(ROW_SIZE[r]) * W;
        if (gradient) {
            by.assign(job.by, job.by + WANTED);
            offset = 0;
            for (int r = 0; r < ROWS; ++r) {
                if (ROW_WANTED[r] >= 0) by[ROW_WANTED[r]] = by_rows + offset;
                offset += int64_t(ROW_SIZE[r]) * W;
            }
        }
        once(inputs.data(), consts);
    }
    ~Memory() { std::free(all); }
};

static void put_row(R *lanes, int i, const R *row, int size) {
    for (int c = 0; c < size; ++c) lanes[c * int64_t(W) + i] = row[c];
}
static void get_row(const R *lanes, int i, R *row, int size) {
    for (int c = 0; c < size; ++c) row[c] = lanes[c * int64_t(W) + i];
}
static void load_rows(const Lanes &job, Memory &m, int i, int64_t sample) {
    R *at = m.rows;
    for (int r = 0; r < ROWS; ++r) {
        put_row(at, i, (const R *)job.inputs[ROW_INPUT[r]] + sample * ROW_SIZE[r], ROW_SIZE[r]);
        at += int64_t(ROW_SIZE[r]) * W;
    }
}

static void evaluate(Memory &m, const double *t, double c, const double *h, const R *y, R *slot, R *k) {
    for (int i = 0; i < W; ++i) m.t[i] = R(t[i] + c * h[i]);
    field(m.t, y, m.inputs.data(), m.consts, slot, m.work, k);
}
template <int J, int TO> static void stages(Memory &m, const double *t, const double *h, bool apart) {
    if constexpr (J <= TO) {
        R *argument = apart ? m.other : m.argument;
        combine<J>(m.y, m.h, m.ks, argument);
        evaluate(m, t, C[J], h, argument, m.slots + (apart ? J * int64_t(SAVED) : 0), m.ks + J * int64_t(N));
        stages<J + 1, TO>(m, t, h, apart);
    }
}

// The derivatives at the start, and the first steps, of the samples from `from` on.
static void open_samples(const Lanes &job, Memory &m, int64_t from, int64_t to, R *first, double *sizes) {
    const Control &control = job.control;
    double t[W], zero[W] = {};
    for (int i = 0; i < W; ++i) t[i] = control.t0;
    for (int64_t start = from; start < to; start += W) {
        const int n = int(std::min<int64_t>(W, to - start));
        for (int i = 0; i < n; ++i) {
            put_row(m.y, i, job.y0 + (start + i) * ROW, ROW);
            load_rows(job, m, i, start + i);
        }
        evaluate(m, t, 0, zero, m.y, m.slots, m.ks);
        for (int i = 0; i < n; ++i) get_row(m.ks, i, first + (start + i - from) * ROW, ROW);
        if (!std::isnan(control.first)) {
            for (int i = 0; i < n; ++i) sizes[start + i - from] = control.direction() * control.first;
            continue;
        }
        auto moved = [&](const double *h, const R *at, R *out) { evaluate(m, t, 1, h, at, m.slots, out); };
        double found[W];
        first_sizes(control, m.y, m.ks, found, moved, m.other, m.argument, m.next);
        std::copy(found, found + n, sizes + (start - from));
    }
}

static void end_lane(Lanes &job, Paces &p, int i, int64_t status, Log *log, int64_t from) {
    const int64_t s = p.sample[i];
    job.times[2 * s] = p.t[i];
    job.counts[3 * s] = status, job.counts[3 * s + 1] = p.accepted[i], job.counts[3 * s + 2] = p.rejected[i];
    if (log) log->last[s - from] = p.before[i];
    p.sample[i] = -1;
}

// Save what an accepted step of a lane passes by, and write the step down.
static void note(Lanes &job, Memory &m, Paces &p, int i, Log *log) {
    const Control &control = job.control;
    if (log) {
        log->entries.push_back({p.t[i], p.step[i], p.before[i], p.next[i]});
        p.before[i] = int64_t(log->entries.size()) - 1;
        for (int c = 0; c < ROW; ++c) log->states.push_back(m.y[c * int64_t(W) + i]);
    }
    while (p.next[i] <= control.saves && (control.ts[p.next[i]] - p.t_next[i]) * control.direction() <= 0) {
        const double s = control.ts[p.next[i]];
        R *out = job.ys + (p.next[i] * job.samples + p.sample[i]) * ROW;
        if ((s - p.t_next[i]) * control.direction() >= 0)
            get_row(m.next, i, out, ROW);
        else {
            double weights[S];
            weights_at((s - p.t[i]) / p.step[i], weights);
            for (int c = 0; c < ROW; ++c) {
                R sum = m.y[c * int64_t(W) + i];
                for (int j = 0; j < S; ++j)
                    sum += R(p.step[i] * weights[j]) * m.ks[j * int64_t(N) + c * int64_t(W) + i];
                out[c] = sum;
            }
        }
        ++p.next[i];
    }
    p.next_save[i] = p.next[i] <= control.saves ? control.ts[p.next[i]] : control.t1;
}

static void solve_range(Lanes &job, Memory &m, int64_t from, int64_t to, Log *log) {
    const Control &control = job.control;
    std::vector<R> first((to - from) * ROW);
    std::vector<double> sizes(to - from);
    open_samples(job, m, from, to, first.data(), sizes.data());
    Paces p = {};
    for (int i = 0; i < W; ++i) p.sample[i] = -1, p.ratio_old[i] = p.ratio_older[i] = p.h_old[i] = 1;
    for (int64_t waiting = from, rounds = 0;; ++rounds) {
        int live = 0;
        for (int i = 0; i < W; ++i) {
            while (p.sample[i] < 0 && waiting < to) {
                const int64_t s = waiting++;
                p.sample[i] = s, p.t[i] = control.t0, p.h[i] = sizes[s - from], p.next[i] = 1, p.before[i] = -1;
                p.accepted[i] = p.rejected[i] = 0, p.ratio[i] = 0, p.next_save[i] = control.ts[1];
                std::memcpy(job.ys + s * ROW, job.y0 + s * ROW, sizeof(R) * ROW);
                job.times[2 * s + 1] = fabs(p.h[i]);
                put_row(m.y, i, job.y0 + s * ROW, ROW);
                put_row(m.ks, i, first.data() + (s - from) * ROW, ROW);
                load_rows(job, m, i, s);
                if (std::isnan(p.h[i])) end_lane(job, p, i, DIVERGED, log, from);
            }
            live += p.sample[i] >= 0;
        }
        if (!live) return;
        propose(control, p);
        for (int i = 0; i < W; ++i) {
            if (p.failed[i]) end_lane(job, p, i, p.failed[i], log, from);
            m.h[i] = R(p.step[i]);
        }
        if (!FSAL && rounds > 0) evaluate(m, p.t, 0, p.step, m.y, m.slots, m.ks);
        stages<1, LAST>(m, p.t, p.step, false);
        combine<S>(m.y, m.h, m.ks, m.next);
        if (FSAL) evaluate(m, p.t, 1, p.step, m.next, m.slots, m.ks + (S - 1) * int64_t(N));
        tolerances(control, m.y, m.next, m.other);
        combine<S + 1>(nullptr, m.h, m.ks, m.argument);
        norms(m.argument, m.other, p.ratio);
        choose(control, p);
        for (int i = 0; i < W; ++i) {
            const bool passed = (p.next_save[i] - p.t_next[i]) * control.direction() <= 0;
            if (p.good[i] && (log || passed)) note(job, m, p, i, log);
        }
        for (int c = 0; c < ROW; ++c)
            for (int i = 0; i < W; ++i) {
                const int64_t at = c * int64_t(W) + i;
                m.y[at] = p.good[i] ? m.next[at] : m.y[at];
                if (FSAL) m.ks[at] = p.good[i] ? m.ks[(S - 1) * int64_t(N) + at] : m.ks[at];
            }
        for (int i = 0; i < W; ++i) {
            p.t[i] = p.good[i] ? p.t_next[i] : p.t[i];
            if (p.good[i] && p.next[i] > control.saves) end_lane(job, p, i, SUCCESS, log, from);
        }
    }
}

extern "C" void advance(Lanes *of, int64_t from, int64_t to) {
    Memory m(*of, false);
    solve_range(*of, m, from, to, nullptr);
}

// The gradient.

// Saved states in step e of lane i as cotangents; whether one lies inside.
static bool saved_inside(const Lanes &job, Memory &m, const Entry &e, int64_t sample, int i, int64_t after) {
    const Control &control = job.control;
    bool any = false;
    for (int64_t s = e.next; s < after; ++s) {
        const R *c = job.cotangents + (s * job.samples + sample) * ROW;
        const double fraction =
            (control.ts[s] - (e.t + e.h)) * control.direction() >= 0 ? 1 : (control.ts[s] - e.t) / e.h;
        if (fraction == 1) {
            for (int j = 0; j < ROW; ++j) m.by_next[j * int64_t(W) + i] += c[j];
            continue;
        }
        any = true;
        double weights[S];
        weights_at(fraction, weights);
        for (int j = 0; j < ROW; ++j) m.by_start[j * int64_t(W) + i] += c[j];
        for (int k = 0; k < S; ++k)
            for (int j = 0; j < ROW; ++j)
                m.by_stages[k * int64_t(N) + j * int64_t(W) + i] += R(e.h * weights[k]) * c[j];
    }
    return any;
}

static void pulled(Memory &m, const double *t, const double *h, int j, R *argument) {
    for (int i = 0; i < W; ++i) m.t[i] = R(t[i] + C[j] * h[i]);
    R *cotangent = m.by_stages + j * int64_t(N);
    pull(m.t, argument, m.inputs.data(), m.consts, m.slots + j * int64_t(SAVED), m.work, cotangent, m.other, m.by.data());
}

template <int J> static void pull_stages(Memory &m, const double *t, const double *h) {
    if constexpr (J >= 0) {
        combine<J>(m.y, m.h, m.ks, m.argument);
        pulled(m, t, h, J, m.argument);
        add(m.by_start, m.other);
        for (int l = 0; l < J; ++l)
            if (A[J][l] != 0) add(m.by_stages + l * int64_t(N), m.h, A[J][l], m.other);
        pull_stages<J - 1>(m, t, h);
    }
}

static void leave(const Lanes &job, Memory &m, int64_t sample, int i) {
    R *out = job.by_y + sample * ROW, *at = m.by_rows;
    const R *c = job.cotangents + sample * ROW;
    for (int j = 0; j < ROW; ++j) out[j] = m.by_next[j * int64_t(W) + i] + c[j], m.by_next[j * int64_t(W) + i] = 0;
    for (int r = 0; r < ROWS; ++r) {
        for (int j = 0; ROW_WANTED[r] >= 0 && j < ROW_SIZE[r]; ++j) {
            job.by[ROW_WANTED[r]][sample * ROW_SIZE[r] + j] += at[j * int64_t(W) + i];
            at[j * int64_t(W) + i] = 0;
        }
        at += int64_t(ROW_SIZE[r]) * W;
    }
}

static void pull_range(Lanes &job, Memory &m, int64_t from, int64_t to, const Log &log) {
    int64_t sample[W], entry[W], after[W], waiting = from;
    double t[W] = {}, h[W] = {};
    for (int i = 0; i < W; ++i) sample[i] = -1;
    std::memset(m.by_next, 0, sizeof(R) * N);
    for (;;) {
        int live = 0;
        std::memset(m.by_stages, 0, sizeof(R) * S * N);
        std::memset(m.by_start, 0, sizeof(R) * N);
        bool any = false;
        for (int i = 0; i < W; ++i) {
            if (sample[i] < 0) {
                h[i] = 0, m.h[i] = 0;
                if (waiting == to) continue;
                sample[i] = waiting++;
                entry[i] = log.last[sample[i] - from];
                after[i] = job.control.saves + 1;
                load_rows(job, m, i, sample[i]);
            }
            ++live;
            const Entry &e = log.entries[entry[i]];
            t[i] = e.t, h[i] = e.h, m.h[i] = R(e.h);
            put_row(m.y, i, log.states.data() + entry[i] * ROW, ROW);
            any |= saved_inside(job, m, e, sample[i], i, after[i]);
        }
        if (!live) return;
        stages<0, LAST>(m, t, h, true);
        if (FSAL && any) {
            combine<S>(m.y, m.h, m.ks, m.next);
            evaluate(m, t, 1, h, m.next, m.slots + (S - 1) * int64_t(SAVED), m.ks + (S - 1) * int64_t(N));
            pulled(m, t, h, S - 1, m.next);
            add(m.by_next, m.other);
        }
        for (int j = 0; j < S; ++j)
            if (B[j] != 0) add(m.by_stages + j * int64_t(N), m.h, B[j], m.by_next);
        add(m.by_start, m.by_next);
        pull_stages<LAST>(m, t, h);
        job.products += (LAST + 1 + (FSAL && any)) * int64_t(live), job.evaluations += (LAST + 1) * int64_t(live);
        std::swap(m.by_next, m.by_start);
        for (int i = 0; i < W; ++i) {
            if (sample[i] < 0) continue;
            after[i] = log.entries[entry[i]].next;
            entry[i] = log.entries[entry[i]].before;
            if (entry[i] < 0) leave(job, m, sample[i], i), sample[i] = -1;
        }
    }
}

// Samples are solved again, some at a time, so that the steps of those alone are kept.
extern "C" void gradient(Lanes *of, int64_t from, int64_t to, int64_t at_a_time) {
    Memory m(*of, true);
    for (int64_t start = from; start < to; start += at_a_time) {
        const int64_t stop = std::min(to, start + at_a_time);
        Log log;
        log.last.assign(stop - start, -1);
        solve_range(*of, m, start, stop, &log);
        pull_range(*of, m, start, stop, log);
    }
}
