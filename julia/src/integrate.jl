# The loop over steps, on OrdinaryDiffEq's integrators.

"""
What is written down while stepping: the saved states, the accepted steps and the events.

# Fields
- `out`: arrays that belong to the caller, in which states are saved, or `nothing`.
- `keep`: what to do with the state at the start of each accepted step before it is stored, or `nothing`.
- `values`: of each event's condition at the end of the last accepted step.
- `probe`: a state's worth of memory, for the conditions; empty without events.
- `ended`: whether a terminal event has taken place.
"""
mutable struct Record{A}
    save_times::Vector{Float64}
    out::Union{Nothing, Vector{A}}
    keep::Any
    conditions::Vector{Event}
    ts::Vector{Float64}
    us::Vector{A}
    steps::StepSequence
    states::Vector{Any}
    events::Vector{EventPoint{A}}
    values::Vector{Float64}
    probe::Vector{A}
    ended::Bool
end

function Record(times, u0, u::A, out, keep, conditions) where {A}
    first_state = isnothing(out) || !(u0 isa A) ? copy(u) : u0
    values = [value(event, u, times[1]) for event in conditions]
    probe = isempty(conditions) ? A[] : [similar(u)]
    return Record{A}(
        times, out, keep, conditions, times[1:1], A[first_state], StepSequence(), Any[], EventPoint{A}[], values, probe, false
    )
end

reached(record::Record) = length(record.ts) == length(record.save_times)
finished(record::Record) = record.ended || reached(record)
next_save(record::Record) = record.save_times[length(record.ts) + 1]

"Memory for the next saved state."
function next_array(record::Record, u)
    return isnothing(record.out) ? similar(u) : record.out[length(record.ts)]
end

function accept!(record::Record, t::Float64, h::Float64, u)
    push!(record.steps.starts, t)
    push!(record.steps.sizes, h)
    isnothing(record.keep) || push!(record.states, record.keep(u))
    return nothing
end

"Save the state at time `s`, which lies in the step that was just taken from `t`."
function save!(record::Record, integrator, t::Float64, s::Float64)
    u = next_array(record, integrator.u)
    push!(record.steps.save_steps, length(record.steps))
    # The end of the step is taken as it is; rounding must not turn it into an interpolated value.
    if s == integrator.t
        copyto!(u, integrator.u)
        push!(record.steps.save_fractions, 1.0)
    else
        integrator(u, s)
        push!(record.steps.save_fractions, (s - t) / integrator.dt)
    end
    push!(record.ts, s)
    push!(record.us, u)
    return nothing
end

"Write down the step that was just taken from `t`: the events in it and the states to save."
function record_step!(record::Record, integrator, t::Float64)
    accept!(record, t, integrator.dt, integrator.uprev)
    isempty(record.conditions) || record_events!(record, integrator, t)
    last_time = record.ended ? record.events[end].t : integrator.t
    while !reached(record) && (next_save(record) - last_time) * integrator.tdir <= 0
        save!(record, integrator, t, next_save(record))
    end
    record.ended && record.ts[end] != last_time && save!(record, integrator, t, last_time)
    # Stages that were added to interpolate in this step must not pass for the next one's, which dense output would keep.
    length(integrator.k) > integrator.kshortsize && resize!(integrator.k, integrator.kshortsize)
    return nothing
end

"Find the events in the step that was just taken from `t`, up to the first that is terminal."
function record_events!(record::Record, integrator, t::Float64)
    probe = record.probe[1]
    state(s) = s == integrator.t ? integrator.u : integrator(probe, s)
    found = Tuple{Float64, Int}[]
    for (i, event) in enumerate(record.conditions)
        before, after = record.values[i], value(event, integrator.u, integrator.t)
        record.values[i] = after
        happens(event, before, after) || continue
        condition_at(s) = value(event, state(s), s)
        push!(found, (sign_change(condition_at, t, integrator.t, before, after), i))
    end
    sort!(found; by = event -> (integrator.tdir * event[1], event[2]))
    for (s, i) in found
        push!(record.events, EventPoint(i, s, copy(state(s))))
        if record.conditions[i].terminal
            record.ended = true
            break
        end
    end
    return nothing
end

"""
    integrate(f!, u0, ts, algorithm; jvp! = nothing, parts = nothing, events = (), dense = false, out = nothing,
        keep_states = false, keep = copy, throw = true) -> Solution

Integrate du/dt = f(u, t) from u(ts[1]) = u0 and return the states at all of `ts`.

# Arguments
- `f!`: in-place vector field `f!(du, u, t)`; `du` and `u` are arrays of u0's type and shape that belong to the solver (write
  all of `du`, leave `u`), `t` is a number of u0's element type. It must be deterministic, and anything callable will do.
- `u0`: initial state, of any shape and kind of array, not empty, with elements of type `Float32` or `Float64`; it is not
  changed. No element is ever accessed singly, so arrays on a device are as good.
- `ts`: times to save the state at, at least two, finite, strictly increasing or strictly decreasing; the first is the initial
  time. Kept as `Float64` whatever the type of the state.
- `algorithm`: [`Euler`](@ref), [`Midpoint`](@ref), [`RK4`](@ref), [`Bosh3`](@ref), [`Dopri5`](@ref), [`Tsit5`](@ref),
  [`Vern7`](@ref), for a stiff field [`Rodas5P`](@ref), [`TRBDF2`](@ref) or [`FBDF`](@ref), or [`AutoSwitch`](@ref).
- `jvp!`: for the methods for stiff fields, the product of the field's Jacobian with a vector, `jvp!(Jv, v, u, t)`, in place, all
  of u0's type and shape; [`HomoJL.forward_jvp`](@ref) makes one for a field written in Julia. `nothing`: finite differences.
  The derivative in time that `Rodas5P` needs is always by finite differences. Other methods have no use for it.
- `parts`: ranges of positions in the flat state; the error ratio that controls the steps is then the largest of the parts'
  root mean squares, and elements outside every part are carried along uncontrolled. `nothing`: the whole state. Methods
  with fixed steps have nothing to control.
- `events`: an [`Event`](@ref) or several. At the first terminal one the solve ends, with status `SUCCESS`: its time and state are
  the last saved, and the save times after it are left out.
- `dense`: whether the solution can be evaluated between the save times; keeps the stages of every step.
- `out`: a vector of `length(ts) - 1` arrays like u0 to save the states in, so that saving takes no memory; `sol.us` then holds them,
  and u0 itself as its first.
- `keep_states`: whether to return the state at the start of every accepted step.
- `keep`: what to make of each of those states, which stay the solver's: by default a copy.
- `throw`: whether a solve that does not reach its end throws; if not, look at the status of what is returned.

# Returns
A [`Solution`](@ref); its states are new arrays, but for those of `out`.

# Throws
- `ArgumentError`: for a wrong argument, before any work, or where the package that the method lives in is not installed.
- [`SolveError`](@ref): if the state diverges, the step gets too small or the steps run out. Its message says what to try.
- Whatever `f!`, `jvp!` and the conditions of events throw, as it is.

# Example
```julia
decay!(du, u, t) = (du .= -u)
sol = integrate(decay!, [1.0, 2.0], [0.0, 0.5, 1.0], Tsit5(rtol = 1e-8, atol = 1e-8))
sol.us[end]   # [0.36788, 0.73576]
```
"""
function integrate(
        @nospecialize(f!), u0::AbstractArray, @nospecialize(ts), algorithm::AbstractODEAlgorithm;
        jvp! = nothing, parts = nothing, events = (), dense::Bool = false, out = nothing, keep_states::Bool = false,
        keep = copy, throw::Bool = true
    )
    require_state(u0)
    times, norm, conditions = checked_times(ts), error_norm(parts, length(u0)), as_events(events)
    u = copy(u0)
    record = Record(times, u0, u, checked_out(out, u, length(times) - 1), keep_states ? keep : nothing, conditions)
    foreach(require_package, packages(algorithm))
    # A package that has just been loaded has methods which are newer than this call.
    solve_latest = isempty(packages(algorithm)) ? solve : (arguments...) -> Base.invokelatest(solve, arguments...)
    solution = solve_latest(f!, jvp!, u, algorithm, norm, record, dense)::Solution{typeof(u)}
    throw && solution.status !== SUCCESS && Base.throw(SolveError(solution))
    return solution
end

checked_out(::Nothing, u, n::Int) = nothing

function checked_out(out, u::A, n::Int) where {A}
    length(out) == n ||
        require(false, "out must have $n arrays, one for each save time after the first, got $(length(out))")
    wrong = findfirst(array -> !(array isa A && size(array) == size(u)), out)
    # The message takes a millisecond to make, which is many solves' worth.
    isnothing(wrong) || require(false, "out must hold arrays like u0, which is a $(summary(u)); one of them is not")
    return collect(A, out)
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

function solve(@nospecialize(f!), @nospecialize(jvp!), u::AbstractArray{T}, algorithm, norm, record, dense) where {T}
    started = time_ns()
    field = CountedField{T}(f!)
    derivatives = algorithm isa Implicit ? Derivatives(field, jvp!, u, algorithm) : nothing
    integrator = start(field, derivatives, u, record, algorithm, norm, dense)
    status, message, n_rejected = advance!(record, integrator, field, derivatives, algorithm, norm)
    n_jvp = isnothing(derivatives) ? 0 : derivatives.n_jvp
    stats = Stats(field.calls[], length(record.steps), n_rejected, (time_ns() - started) / 1.0e9, n_jvp)
    interpolant = dense ? Interpolant(integrator.sol) : nothing
    return Solution(
        record.ts, record.us, status, stats, record.steps, kept(record), record.events, interpolant, message
    )
end

kept(record::Record{A}) where {A} = record.keep === nothing || record.keep === copy ? Vector{A}(record.states) : record.states

"An integrator at the first save time that prints nothing, and stops at the last; it may change `u`."
function start(field, derivatives, u, record, algorithm, norm, dense::Bool)
    times = record.save_times
    f = ode_function(field, derivatives, algorithm, length(u))
    problem = SciMLBase.ODEProblem{true, SciMLBase.FullSpecialize}(f, u, (times[1], times[end]))
    # What interpolates is computed with each step only where something is going to ask for it.
    calck = dense || !isempty(record.conditions) || (algorithm isa AbstractErrorControlled && length(times) > 2)
    return SciMLBase.init(
        problem, method(algorithm, length(u)); save_start = dense, save_end = dense, save_everystep = dense, dense, calck,
        unstable_check = Returns(false), verbose = SciMLLogging.None(), step_options(algorithm, times, norm, u)...
    )
end

ode_function(field, ::Nothing, algorithm, n) = SciMLBase.ODEFunction{true, SciMLBase.FullSpecialize}(field)

function ode_function(field, derivatives::Derivatives, algorithm, n)
    tgrad = TimeDerivative(derivatives)
    if is_dense(algorithm, n)
        return SciMLBase.ODEFunction{true, SciMLBase.FullSpecialize}(field; tgrad, jac = Jacobian(derivatives))
    end
    return SciMLBase.ODEFunction{true, SciMLBase.FullSpecialize}(field; tgrad, jvp = JacobianVector(derivatives))
end

step_options(::FixedStep, times, norm, u) = (; adaptive = false, tstops = times[2:end])

function step_options(algorithm::AbstractErrorControlled, times, norm, u::AbstractArray{T}) where {T}
    options = (;
        dt = times[end] - times[1], internalnorm = norm, reltol = T(algorithm.rtol), abstol = T(algorithm.atol),
        maxiters = algorithm.max_steps,
    )
    return algorithm isa Adaptive ? (; options..., controller = algorithm.controller) : options
end

"A continuous extension as OrdinaryDiffEq keeps it; the type of its solution, a long one, stays out of [`Solution`](@ref)'s."
struct Interpolant
    solution::Any
end

evaluate!(out, interpolant::Interpolant, t::Float64) = interpolant.solution(out, t)

function advance!(record::Record, integrator, field, derivatives, algorithm::FixedStep, norm)
    times = record.save_times
    for (t0, t1) in zip(times, Iterators.drop(times, 1))
        # The small allowance keeps 0.3 / 0.1 from becoming four steps.
        n = isnothing(algorithm.step_size) ? 1 : max(1, ceil(Int, abs(t1 - t0) / algorithm.step_size - 1.0e-9))
        for i in 1:n
            i < n && SciMLBase.add_tstop!(integrator, t0 + i * ((t1 - t0) / n))
            t = integrator.t
            SciMLBase.step!(integrator)
            integrator.dt = integrator.t - t
            record_step!(record, integrator, t)
            record.ended && break
        end
        record.ended && break
    end
    bad = findfirst(u -> !all(isfinite, u), record.us)
    isnothing(bad) && return SUCCESS, "", 0
    place = bad == 1 ? @sprintf("at t = %.6g", times[1]) : @sprintf("in t = %.6g .. %.6g", record.ts[bad - 1], record.ts[bad])
    message = "$(name(algorithm)): $(sentence(DIVERGED)) ($place, after $(length(record.steps)) steps); " *
        "try a smaller step_size or an adaptive method"
    return DIVERGED, message, 0
end

function advance!(record::Record, integrator, field, derivatives, algorithm::AbstractErrorControlled, norm)
    times = record.save_times
    t_end, span = times[end], times[end] - times[1]
    h = if isnothing(algorithm.first_step)
        u = integrator.u
        initial_step(field, u, derivative_at_start(integrator, field, u), times[1], span, integrator.alg, algorithm, norm)
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
        isnothing(derivatives) || (derivatives.h = copysign(min(h, abs(t_end - t)), span))
        step!(integrator, algorithm) || return stop!(record, integrator, algorithm, DIVERGED, h)
        if !SciMLBase.successful_retcode(integrator.sol)
            return stop!(record, integrator, algorithm, failure(integrator, field), integrator.dt)
        end
        # The last step may have been cut short.
        integrator.t == t_end && (integrator.dt = t_end - t)
        record_step!(record, integrator, t)
    end
    all(isfinite, integrator.u) || return stop!(record, integrator, algorithm, DIVERGED, integrator.dt)
    return SUCCESS, "", n_rejected(record, integrator)
end

"Try steps until one is accepted or the solve fails; false if the derivatives at the last accepted state are not finite."
function step!(integrator, algorithm)
    SciMLBase.step!(integrator)
    return true
end

function step!(integrator, ::Implicit)
    try
        SciMLBase.step!(integrator)
    catch e
        e isa NotFinite || rethrow()
        # The state is a step's that never was.
        integrator.accept_step = false
        return false
    end
    return true
end

"""
Steps that were tried in vain: the error was too large, or the systems of equations were not solved. The integrator has counted one
more when it fails, which it finds out before it tries.
"""
function n_rejected(record::Record, integrator)
    failed = !SciMLBase.successful_retcode(integrator.sol)
    return max(0, integrator.iter - length(record.steps) - failed)
end

"The derivative at the start, which a method whose last stage is the next step's first has evaluated already."
function derivative_at_start(integrator, field, u)
    isnothing(integrator.fsalfirst) || return integrator.fsalfirst
    k = similar(u)
    field(k, u, integrator.p, integrator.t)
    return k
end

"What a return code other than success means here."
function failure(integrator, field)
    integrator.sol.retcode === SciMLBase.ReturnCode.MaxIters && return MAX_STEPS
    isfinite(OrdinaryDiffEqCore.get_EEst(integrator)) || return DIVERGED
    # Where nonlinear systems went unsolved, there is no error estimate: look at the field at the end of the step.
    k = similar(integrator.u)
    field(k, integrator.uprev, integrator.p, integrator.t + integrator.dt)
    return all(isfinite, k) ? STEP_TOO_SMALL : DIVERGED
end

"Save the last accepted state, and say what happened and what to try."
function stop!(record::Record, integrator, algorithm::AbstractErrorControlled, status::Status, h)
    t, rejected = integrator.t, n_rejected(record, integrator)
    if record.ts[end] != t
        push!(record.ts, t)
        # A rejected step has already overwritten the state, but not the one before it.
        push!(record.us, copy(integrator.accept_step ? integrator.u : integrator.uprev))
    end
    advice = if status === MAX_STEPS
        "raise max_steps (now $(algorithm.max_steps)), loosen rtol and atol, or $(last_resort(algorithm))"
    elseif status === STEP_TOO_SMALL
        "loosen rtol and atol, use Float64, or $(last_resort(algorithm))"
    else
        "the field returns NaN or infinity near this state; look at it there"
    end
    counts = @sprintf("%d accepted and %d rejected steps, step %.2g", length(record.steps), rejected, abs(h))
    message = "$(name(algorithm)): $(sentence(status)) ($(@sprintf("at t = %.6g", t)) after $counts); $advice"
    return status, message, rejected
end

last_resort(::Adaptive) = "suspect a stiff field, for which there are Rodas5P, TRBDF2 and FBDF"
last_resort(::Implicit) = "check jvp! against the field, or suspect a field that is not smooth here"
