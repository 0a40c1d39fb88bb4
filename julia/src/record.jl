# A solve whose accepted steps are recorded, on OrdinaryDiffEq's integrators: what PyTorch's adjoints are computed from.

"""
What is asked of a recorded solve beside the field, the times and the method: `rtol` and `atol` of a method that estimates its error,
and the steps.

# Fields
- `first_step`: size of the first step; `nothing`: Hairer's estimate, one more evaluation.
- `min_step`, `max_step`: smallest step before the solve stops (0: what rounding of the time allows) and largest one.
- `max_steps`: accepted and rejected steps together before the solve stops.
- `step_size`: take equal steps of at most this size that end on every save time; `nothing`: steps by the error, or one
  step from each save time to the next where the method estimates none.
- `controller`: a [`TorchController`](@ref ZeroPaths.TorchController); `nothing`: the method's own.
- `mass_matrix`: of M du/dt = f; `nothing`: the unit matrix.

Throws an `ArgumentError` for a value outside its range.
"""
Base.@kwdef struct Request
    rtol::Float64 = 1.0e-3
    atol::Float64 = 1.0e-6
    first_step::Union{Nothing, Float64} = nothing
    min_step::Float64 = 0.0
    max_step::Float64 = Inf
    max_steps::Int = 10_000
    step_size::Union{Nothing, Float64} = nothing
    controller::Union{Nothing, TorchController} = nothing
    mass_matrix::Any = nothing

    function Request(rtol, atol, first_step, min_step, max_step, max_steps, step_size, controller, mass_matrix)
        require_tolerances(rtol, atol, max_steps)
        for (what, step) in (("first_step", first_step), ("step_size", step_size))
            require(isnothing(step) || (isfinite(step) && step > 0), "$what must be positive and finite, got $step")
        end
        require(0 <= min_step < max_step, "min_step must be >= 0 and below max_step, got $min_step")
        return new(rtol, atol, first_step, min_step, max_step, max_steps, step_size, controller, mass_matrix)
    end
end

"""
What is written down of a solve.

# Fields
- `save_times`: asked for, the first of them the initial time.
- `ts`, `us`: times and states that were saved; after a solve that stopped early, also those that it stopped at.
- `starts`, `sizes`: of the accepted steps, exactly as they were taken.
- `save_steps`, `save_fractions`: for each saved time after the first the step that it lies in, and where in it, in
  (0, 1]; exactly 1 means the end of the step.
- `ending`, `step`: how it ended, and the size of the step that stopped it.
- `n_rejected`, `nfe`, `n_jvp`: steps tried in vain, evaluations of the field, and products with its Jacobian.
- `event`: the position of the condition that ended it, 0 where it was not a number, `nothing`: none.
- `solution`: OrdinaryDiffEq's, an interpolant, where it was asked for.
"""
Base.@kwdef mutable struct Record{A}
    save_times::Vector{Float64}
    out::Union{Nothing, Vector{A}}
    keep::Any
    ts::Vector{Float64}
    us::Vector{A}
    starts::Vector{Float64} = Float64[]
    sizes::Vector{Float64} = Float64[]
    save_steps::Vector{Int} = Int[]
    save_fractions::Vector{Float64} = Float64[]
    ending::Symbol = :success
    step::Float64 = 0.0
    n_rejected::Int = 0
    nfe::Int = 0
    n_jvp::Int = 0
    event::Union{Nothing, Int} = nothing
    solution::Any = nothing
end

# Methods that homojl's own names stand for most often.
const STEPPERS = (OrdinaryDiffEqLowOrderRK.Euler(), OrdinaryDiffEqLowOrderRK.RK4(), OrdinaryDiffEqLowOrderRK.DP5(), OrdinaryDiffEqTsit5.Tsit5())
const Stepper = Union{map(typeof, STEPPERS)...}

reached(record::Record) = length(record.ts) == length(record.save_times)
next_save(record::Record) = record.save_times[length(record.ts) + 1]
next_array(record::Record, u) = isnothing(record.out) ? similar(u) : record.out[length(record.ts)]

"Save the state at time `s`, which lies in the step that was just taken from `t`."
function save!(record::Record, integrator, t::Float64, s::Float64, u = next_array(record, integrator.u))
    push!(record.save_steps, length(record.starts))
    # The end of the step is taken as it is; rounding must not turn it into an interpolated value.
    if s == integrator.t
        copyto!(u, integrator.u)
        push!(record.save_fractions, 1.0)
    else
        integrator(u, s)
        push!(record.save_fractions, (s - t) / integrator.dt)
    end
    push!(record.ts, s)
    push!(record.us, u)
    return nothing
end

"Write down the step that was just taken from `t`, and save the states in it, up to an event; whether there was one."
function record_step!(record::Record, integrator, watch, t::Float64)
    event = isnothing(watch) ? nothing : event_in(watch, integrator, t)
    if !isnothing(watch) && watch.which === 0
        # The end is the start of the step in which a condition is no longer a number.
        record.ending, record.event = :diverged, 0
        save_last!(record, t, integrator.uprev)
        return true
    end
    push!(record.starts, t)
    push!(record.sizes, integrator.dt)
    isnothing(record.keep) || record.keep(integrator.uprev)
    last_time = something(event, integrator.t)
    while !reached(record)
        left = (next_save(record) - last_time) * integrator.tdir
        (left > 0 || (left == 0 && !isnothing(event))) && break
        save!(record, integrator, t, next_save(record))
    end
    if !isnothing(event)
        save!(record, integrator, t, event, reached(record) ? similar(integrator.u) : next_array(record, integrator.u))
        record.ending, record.event = :event, watch.which
    end
    # Stages that were added to interpolate in this step must not pass for the next one's.
    length(integrator.k) > integrator.kshortsize && resize!(integrator.k, integrator.kshortsize)
    return !isnothing(event)
end

"""
    record(f!, u0, ts, alg, request; options...) -> Record

Integrate du/dt = f(u, t) from u(ts[1]) = u0 by a method of OrdinaryDiffEq, and write down what it did.

# Arguments
- `f!`: in-place vector field `f!(du, u, t)`; `du` and `u` are arrays of u0's type and shape that belong to the solver, `t`
  is a number of u0's element type.
- `u0`: initial state of type `Float32` or `Float64`, in any kind of array; no element is accessed singly.
- `ts`: at least two times to save the state at, finite and strictly monotone; the first is the initial time.
- `jvp!`: for methods that ask for the Jacobian, its product with a vector, `jvp!(Jv, v, u, t)`; `nothing`: finite differences.
- `dense`: whether such a method gets the Jacobian as a matrix, rather than its products with vectors.
- `parts`: ranges of positions whose largest root mean square is the norm of the error; `nothing`: the whole state.
- `watch`: `(values!, direction, n, passed)` of conditions that end the solve, see `ZeroPaths.Watch`; `nothing`: none.
- `out`: `length(ts) - 1` arrays like u0 to save the states in; `nothing`: new ones.
- `keep`: called with the state at the start of every accepted step, which stays the solver's; `nothing`: not called.
- `interpolate`: whether the record has an interpolant of the whole solution, in the memory of all steps and their stages.

Throws an `ArgumentError` for a wrong argument, and whatever the functions throw.
"""
function record(
        @nospecialize(f!), u0::AbstractArray, ts, alg, request::Request; jvp! = nothing, dense::Bool = length(u0) <= 64,
        parts = nothing, watch = nothing, out = nothing, keep = nothing, interpolate::Bool = false
    )
    return record(f!, jvp!, u0, checked_times(ts), alg, request, dense, error_norm(parts, length(u0)), watch, out, keep, interpolate)
end

# Compiled for the types of state and method alone.
function record(
        @nospecialize(f!), @nospecialize(jvp!), u0::AbstractArray, times::Vector{Float64}, alg, request::Request, dense::Bool,
        norm::ErrorNorm, @nospecialize(watch), out, @nospecialize(keep), interpolate::Bool = false
    )
    require_state(u0)
    u = copy(u0)
    record = Record(; save_times = times, out, keep, ts = times[1:1], us = [isnothing(out) ? copy(u0) : u0])
    field = CountedField{eltype(u0)}(f!)
    derivatives = asks_for_jacobian(alg) ? Derivatives(field, jvp!, u, request.rtol, request.atol) : nothing
    watched = isnothing(watch) ? nothing : Watch(watch..., u, times[1])
    integrator = start(field, derivatives, dense, u, record, alg, request, norm, !isnothing(watched), interpolate)
    if has_equal_steps(alg, request)
        equal_steps!(record, integrator, watched, derivatives, request)
    else
        controlled_steps!(record, integrator, watched, field, derivatives, request, norm)
    end
    record.nfe, record.n_jvp = field.calls[], isnothing(derivatives) ? 0 : derivatives.n_jvp
    interpolate && (record.solution = integrator.sol)
    return record
end

has_equal_steps(alg, request::Request) = !isnothing(request.step_size) || !OrdinaryDiffEqCore.isadaptive(alg)

"Whether a method, or one that it may switch to, solves equations with the field's Jacobian."
asks_for_jacobian(alg) = hasfield(typeof(alg), :linsolve) || hasfield(typeof(alg), :autodiff)
asks_for_jacobian(alg::OrdinaryDiffEqCore.CompositeAlgorithm) = any(asks_for_jacobian, alg.algs)

function checked_times(ts)
    times = collect(Float64, ts)
    require(times isa Vector, "ts must be a sequence of numbers, got an array of $(ndims(times)) dimensions")
    require(length(times) >= 2, "ts needs the initial time and at least one more, got $(length(times)) time(s)")
    require(all(isfinite, times), "ts has a time that is not finite")
    gaps = diff(times)
    require(all(>(0), gaps) || all(<(0), gaps), "ts must be strictly increasing or strictly decreasing")
    return times
end

error_norm(::Nothing, n::Int) = ErrorNorm(())

function error_norm(parts, n::Int)
    ranges = Tuple(UnitRange{Int}(part) for part in parts)
    ok = !isempty(ranges) && all(part -> !isempty(part) && 1 <= first(part) && last(part) <= n, ranges)
    require(ok, "parts must be ranges within the $n elements of the state, none of them empty, got $parts")
    return ErrorNorm(ranges)
end

"An integrator at the first save time that prints nothing, and stops at the last; it may change `u`."
function start(field, derivatives, dense::Bool, u, record, alg, request::Request, norm, watched::Bool, interpolate::Bool)
    times, T = record.save_times, eltype(u)
    f = ode_function(field, derivatives, dense, request.mass_matrix)
    problem = SciMLBase.ODEProblem{true, SciMLBase.FullSpecialize}(f, u, (times[1], times[end]))
    # What interpolates is computed with each step only where something is going to ask for it, and where the method is not one
    # of those that are known to do without: SSPRK932 has order 1 then.
    calck = watched || interpolate || !(alg isa Stepper) || (!has_equal_steps(alg, request) && length(times) > 2)
    common = (;
        save_start = interpolate, save_end = false, save_everystep = interpolate, dense = interpolate, calck,
        unstable_check = Returns(false), verbose = SciMLLogging.None(),
    )
    if has_equal_steps(alg, request)
        dt = (times[2] - times[1]) / n_steps(times[2] - times[1], request)
        tolerances = (; abstol = T(request.atol), reltol = T(request.rtol))
        return SciMLBase.init(problem, alg; common..., tolerances..., dt, adaptive = false, tstops = times[2:end])
    end
    options = (;
        dt = times[end] - times[1], internalnorm = norm, reltol = T(request.rtol), abstol = T(request.atol),
        maxiters = request.max_steps, dtmax = min(request.max_step, abs(times[end] - times[1])),
    )
    control = isnothing(request.controller) ? (;) : (; request.controller)
    integrator = SciMLBase.init(problem, alg; common..., options..., control...)
    # Steps end on the save times of a method that has nothing better between them.
    coarse_between_steps(integrator) && foreach(t -> SciMLBase.add_tstop!(integrator, t), times[2:(end - 1)])
    return integrator
end

"Whether a method of an order above 4, or one that varies, has only the cubic through the ends of a step for times within it."
coarse_between_steps(integrator) =
    (order_of(integrator.alg; unknown = Inf) > 4 || hasproperty(integrator.cache, :order)) &&
    occursin("Hermite", SciMLBase.interp_summary(typeof(integrator.cache), true))

function ode_function(field, d, dense::Bool, mass_matrix)
    F = SciMLBase.ODEFunction{true, SciMLBase.FullSpecialize}
    more = isnothing(mass_matrix) ? (;) : (; mass_matrix)
    isnothing(d) && return F(field; more...)
    tgrad = (dT, u, p, t) -> time_derivative!(dT, d, u, p, t)
    dense && return F(field; tgrad, jac = (J, u, p, t) -> jacobian!(J, d, u, p, t), more...)
    return F(field; tgrad, jvp = (Jv, v, u, p, t) -> flat_product!(Jv, d, v, u, p, t), more...)
end

# The small allowance keeps 0.3 / 0.1 from becoming four steps.
n_steps(span::Float64, request::Request) =
    isnothing(request.step_size) ? 1 : max(1, ceil(Int, abs(span) / request.step_size - 1.0e-9))

function equal_steps!(record::Record, integrator, watch, derivatives, request::Request)
    times = record.save_times
    for (t0, t1) in zip(times, Iterators.drop(times, 1))
        n = n_steps(t1 - t0, request)
        h = (t1 - t0) / n
        isnothing(derivatives) || (derivatives.h = h)
        for i in 1:n
            i < n && SciMLBase.add_tstop!(integrator, t0 + i * h)
            t = integrator.t
            i == 1 && SciMLBase.set_proposed_dt!(integrator, h)
            SciMLBase.step!(integrator)
            integrator.dt = integrator.t - t
            integrator.t == t && return stop!(record, integrator, :diverged, h)
            record_step!(record, integrator, watch, t) && return nothing
        end
    end
    all(u -> all(isfinite, u), record.us) || (record.ending = :diverged)
    return nothing
end

function controlled_steps!(record::Record, integrator, watch, field, derivatives, request::Request, norm)
    times = record.save_times
    t_end, span = times[end], times[end] - times[1]
    h = if isnothing(request.first_step)
        k = derivative_at_start(integrator, field)
        initial_step(field, integrator.u, k, times[1], span, integrator.alg, request.rtol, request.atol, norm)
    else
        copysign(request.first_step, span)
    end
    isnan(h) && return stop!(record, integrator, :diverged, h)
    h = copysign(min(abs(h), request.max_step), span)
    integrator.dt = h
    SciMLBase.set_proposed_dt!(integrator, h)

    while !reached(record)
        t = integrator.t
        smallest = max(request.min_step, 8 * eps(t))
        h = abs(SciMLBase.get_proposed_dt(integrator))
        h <= smallest && h < abs(t_end - t) && return stop!(record, integrator, :step_too_small, h)
        integrator.opts.dtmin = smallest
        isnothing(derivatives) || (derivatives.h = copysign(min(h, abs(t_end - t)), span))
        step_once!(integrator) || return stop!(record, integrator, :diverged, h)
        if !SciMLBase.successful_retcode(integrator.sol)
            return stop!(record, integrator, failure(integrator, field), integrator.dt)
        end
        # A step that ends on a save time may have been cut short.
        integrator.t == next_save(record) && (integrator.dt = integrator.t - t)
        record_step!(record, integrator, watch, t) && break
    end
    all(isfinite, integrator.u) || return stop!(record, integrator, :diverged, integrator.dt)
    record.n_rejected = n_rejected(record, integrator)
    return nothing
end

"Try steps until one is accepted or the solve fails; false if the derivatives at the last accepted state are not finite."
function step_once!(integrator)
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
    return max(0, integrator.iter - length(record.starts) - failed)
end

"The derivative at the start, which a method whose last stage is the next step's first has evaluated already."
function derivative_at_start(integrator, field)
    isnothing(integrator.fsalfirst) || !OrdinaryDiffEqCore.isfsal(integrator.alg) || return integrator.fsalfirst
    k = similar(integrator.u)
    field(k, integrator.u, integrator.p, integrator.t)
    return k
end

"What a return code other than success means here."
function failure(integrator, field)
    integrator.sol.retcode === ReturnCode.MaxIters && return :max_steps
    isfinite(OrdinaryDiffEqCore.get_EEst(integrator)) || return :diverged
    # Where nonlinear systems went unsolved, there is no error estimate: look at the field at the end of the step.
    k = similar(integrator.u)
    field(k, integrator.uprev, integrator.p, integrator.t + integrator.dt)
    return all(isfinite, k) ? :step_too_small : :diverged
end

"End at the last accepted state."
function stop!(record::Record, integrator, ending::Symbol, h)
    record.ending, record.step, record.n_rejected = ending, abs(h), n_rejected(record, integrator)
    # A rejected step has already overwritten the state, but not the one before it.
    return save_last!(record, integrator.t, integrator.accept_step ? integrator.u : integrator.uprev)
end

function save_last!(record::Record, t::Float64, u)
    record.ts[end] == t && return nothing
    push!(record.ts, t)
    push!(record.us, copy(u))
    return nothing
end
