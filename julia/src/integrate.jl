# The loop over steps, on OrdinaryDiffEq's integrators.

"""
A field f!(du, u, t) as OrdinaryDiffEq calls it: counted, and given the time as a `T`.

The type of `f!` is deliberately unknown to the compiler: the solvers are then compiled once for each type of array instead
of once for each field, at the price of a dynamic dispatch, some tens of nanoseconds, at each call.
"""
mutable struct CountedField{T}
    const f!::Any
    calls::Int
end

function (field::CountedField{T})(du, u, p, t) where {T}
    field.calls += 1
    field.f!(du, u, T(t))
    return nothing
end

"What is written down while stepping: the saved states and the accepted steps."
struct Record{A}
    save_times::Vector{Float64}
    ts::Vector{Float64}
    us::Vector{A}
    steps::StepSequence
    states::Vector{A}
    keep_states::Bool
end

finished(record::Record) = length(record.ts) == length(record.save_times)
next_save(record::Record) = record.save_times[length(record.ts) + 1]

function accept!(record::Record, t::Float64, h::Float64, u)
    push!(record.steps.starts, t)
    push!(record.steps.sizes, h)
    record.keep_states && push!(record.states, copy(u))
    return nothing
end

function save!(record::Record, fraction::Float64, u)
    push!(record.steps.save_steps, length(record.steps))
    push!(record.steps.save_fractions, fraction)
    push!(record.ts, next_save(record))
    push!(record.us, u)
    return nothing
end

"""
    integrate(f!, u0, ts, algorithm; parts = nothing, keep_states = false, throw = true) -> Solution

Integrate du/dt = f(u, t) from u(ts[1]) = u0 and return the states at all of `ts`.

# Arguments
- `f!`: in-place vector field `f!(du, u, t)`; `du` and `u` are arrays of u0's type and shape that belong to the solver (write
  all of `du`, leave `u`), `t` is a number of u0's element type. It must be deterministic, and anything callable will do.
- `u0`: initial state, of any shape and kind of array, not empty, with elements of type `Float32` or `Float64`; it is not
  changed. No element is ever accessed singly, so arrays on a device are as good.
- `ts`: times to save the state at, at least two, finite, strictly increasing or strictly decreasing; the first is the initial
  time. Kept as `Float64` whatever the type of the state.
- `algorithm`: [`Euler`](@ref), [`Midpoint`](@ref), [`RK4`](@ref), [`Bosh3`](@ref), [`Dopri5`](@ref), [`Tsit5`](@ref) or
  [`Vern7`](@ref).
- `parts`: ranges of positions in the flat state; the error ratio that controls the steps is then the largest of the parts'
  root mean squares, and elements outside every part are carried along uncontrolled. `nothing`: the whole state. Methods
  with fixed steps have nothing to control.
- `keep_states`: whether to return the state at the start of every accepted step.
- `throw`: whether a solve that does not reach its end throws; if not, look at the status of what is returned.

# Returns
A [`Solution`](@ref); its states are new arrays.

# Throws
- `ArgumentError`: for a wrong argument, before any work.
- [`SolveError`](@ref): if the state diverges, the step gets too small or the steps run out. Its message says what to try.
- Whatever `f!` throws, as it is.

# Example
```julia
decay!(du, u, t) = (du .= -u)
sol = integrate(decay!, [1.0, 2.0], [0.0, 0.5, 1.0], Tsit5(rtol = 1e-8, atol = 1e-8))
sol.us[end]   # [0.36788, 0.73576]
```
"""
function integrate(
        @nospecialize(f!), u0::AbstractArray, @nospecialize(ts), algorithm::AbstractODEAlgorithm;
        parts = nothing, keep_states::Bool = false, throw::Bool = true
    )
    require_state(u0)
    solution = solve(f!, u0, checked_times(ts), algorithm, error_norm(parts, length(u0)), keep_states)
    throw && solution.status !== SUCCESS && Base.throw(SolveError(solution))
    return solution
end

function require_state(u0)
    T = eltype(u0)
    require(T === Float32 || T === Float64, "u0 must have elements of type Float32 or Float64, got $T; convert it first")
    require(!isempty(u0), "u0 is empty: its size is $(size(u0))")
    return nothing
end

function checked_times(@nospecialize(ts))
    times = collect(Float64, ts)
    require(times isa Vector{Float64}, "ts must be a sequence of numbers, got an array with $(ndims(times)) dimensions")
    require(length(times) >= 2, "ts needs the initial time and at least one more, got $(length(times)) time(s)")
    require(all(isfinite, times), "ts has a time that is not finite")
    gaps = diff(times)
    require(all(>(0), gaps) || all(<(0), gaps), "ts must be strictly increasing or strictly decreasing")
    return times
end

error_norm(::Nothing, n::Int) = ErrorNorm(())

function error_norm(parts, n::Int)
    ranges = Tuple(UnitRange{Int}(part) for part in parts)
    require(!isempty(ranges), "parts has no part in it; leave it out to control the whole state")
    for part in ranges
        require(!isempty(part), "parts has the empty range $part in it")
        require(1 <= first(part) && last(part) <= n, "parts has the range $part in it, but the state has $n elements")
    end
    return ErrorNorm(ranges)
end

function solve(@nospecialize(f!), u0::AbstractArray{T}, times, algorithm, norm, keep_states) where {T}
    started = time_ns()
    u = copy(u0)
    field = CountedField{T}(f!, 0)
    record = Record(times, times[1:1], [copy(u)], StepSequence(), typeof(u)[], keep_states)
    status, message, n_rejected = advance!(record, field, u, algorithm, norm)
    stats = Stats(field.calls, length(record.steps), n_rejected, (time_ns() - started) / 1.0e9)
    return Solution(record.ts, record.us, status, stats, record.steps, record.states, message)
end

"An integrator at the first save time that saves nothing, prints nothing, and stops at the last; it may change `u`."
function start(field, u, times, algorithm; options...)
    f = SciMLBase.ODEFunction{true, SciMLBase.FullSpecialize}(field)
    problem = SciMLBase.ODEProblem{true, SciMLBase.FullSpecialize}(f, u, (times[1], times[end]))
    return SciMLBase.init(
        problem, method(algorithm); save_start = false, save_end = false, save_everystep = false,
        dense = false, unstable_check = Returns(false), verbose = SciMLLogging.None(), options...
    )
end

function advance!(record::Record, field, u, algorithm::FixedStep, norm)
    times = record.save_times
    integrator = start(field, u, times, algorithm; adaptive = false, tstops = times[2:end], calck = false)
    for (t0, t1) in zip(times, Iterators.drop(times, 1))
        # The small allowance keeps 0.3 / 0.1 from becoming four steps.
        n = isnothing(algorithm.step_size) ? 1 : max(1, ceil(Int, abs(t1 - t0) / algorithm.step_size - 1.0e-9))
        for i in 1:n
            i < n && SciMLBase.add_tstop!(integrator, t0 + i * ((t1 - t0) / n))
            t = integrator.t
            SciMLBase.step!(integrator)
            accept!(record, t, integrator.t - t, integrator.uprev)
        end
        save!(record, 1.0, copy(integrator.u))
    end
    bad = findfirst(u -> !all(isfinite, u), record.us)
    isnothing(bad) && return SUCCESS, "", 0
    place = bad == 1 ? @sprintf("at t = %.6g", times[1]) : @sprintf("in t = %.6g .. %.6g", times[bad - 1], times[bad])
    message = "$(name(algorithm)): $(sentence(DIVERGED)) ($place, after $(length(record.steps)) steps); " *
        "try a smaller step_size or an adaptive method"
    return DIVERGED, message, 0
end

function advance!(record::Record, field, u::AbstractArray{T}, algorithm::Adaptive, norm) where {T}
    times = record.save_times
    t_end, span = times[end], times[end] - times[1]
    integrator = start(
        field, u, times, algorithm; dt = span, calck = length(times) > 2, controller = algorithm.controller,
        internalnorm = norm, reltol = T(algorithm.rtol), abstol = T(algorithm.atol), maxiters = algorithm.max_steps
    )
    h = if isnothing(algorithm.first_step)
        initial_step(field, u, derivative_at_start(integrator, field, u), times[1], span, algorithm, norm)
    else
        copysign(algorithm.first_step, span)
    end
    isnan(h) && return stop!(record, integrator, algorithm, DIVERGED, h)
    integrator.dt = h
    SciMLBase.set_proposed_dt!(integrator, h)

    while !finished(record)
        t = integrator.t
        smallest = max(algorithm.min_step, 8 * eps(t))
        h = abs(SciMLBase.get_proposed_dt(integrator))
        h <= smallest && h < abs(t_end - t) && return stop!(record, integrator, algorithm, STEP_TOO_SMALL, h)
        integrator.opts.dtmin = smallest
        SciMLBase.step!(integrator)
        if !SciMLBase.successful_retcode(integrator.sol)
            return stop!(record, integrator, algorithm, failure(integrator), integrator.dt)
        end
        # The last step may have been cut short.
        integrator.t == t_end && (integrator.dt = t_end - t)
        accept!(record, t, integrator.dt, integrator.uprev)
        save_passed!(record, integrator, t)
    end
    all(isfinite, integrator.u) || return stop!(record, integrator, algorithm, DIVERGED, integrator.dt)
    return SUCCESS, "", integrator.stats.nreject
end

"The derivative at the start, which a method whose last stage is the next step's first has evaluated already."
function derivative_at_start(integrator, field, u)
    isnothing(integrator.fsalfirst) || return integrator.fsalfirst
    k = similar(u)
    field(k, u, integrator.p, integrator.t)
    return k
end

"Save what lies in the step that was just taken from `t`."
function save_passed!(record::Record, integrator, t::Float64)
    while !finished(record) && (next_save(record) - integrator.t) * integrator.tdir <= 0
        # The end of the step is taken as it is; rounding must not turn it into an interpolated value.
        s = next_save(record)
        s == integrator.t ? save!(record, 1.0, copy(integrator.u)) : save!(record, (s - t) / integrator.dt, integrator(s))
    end
    return nothing
end

"What a return code other than success means here."
function failure(integrator)
    integrator.sol.retcode === SciMLBase.ReturnCode.MaxIters && return MAX_STEPS
    return isfinite(OrdinaryDiffEqCore.get_EEst(integrator)) ? STEP_TOO_SMALL : DIVERGED
end

"Save the last accepted state, and say what happened and what to try."
function stop!(record::Record, integrator, algorithm::Adaptive, status::Status, h)
    t, n_rejected = integrator.t, integrator.stats.nreject
    if record.ts[end] != t
        push!(record.ts, t)
        # A rejected step has already overwritten the state, but not the one before it.
        push!(record.us, copy(integrator.accept_step ? integrator.u : integrator.uprev))
    end
    advice = if status === MAX_STEPS
        "raise max_steps (now $(algorithm.max_steps)), loosen rtol and atol, or suspect a stiff field"
    elseif status === STEP_TOO_SMALL
        "loosen rtol and atol, use Float64, or suspect a stiff field"
    else
        "the field returns NaN or infinity near this state; look at it there"
    end
    counts = @sprintf("%d accepted and %d rejected steps, step %.2g", length(record.steps), n_rejected, abs(h))
    message = "$(name(algorithm)): $(sentence(status)) ($(@sprintf("at t = %.6g", t)) after $counts); $advice"
    return status, message, n_rejected
end
