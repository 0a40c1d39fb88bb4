# A solve whose accepted steps are recorded, on OrdinaryDiffEq's integrators: what PyTorch's adjoints are computed from.

"""
What is asked of a recorded solve beside the field, the times and the method.

# Fields
- `name`: of the method, for messages.
- `rtol`, `atol`: tolerances of a method that estimates its error.
- `first_step`: size of the first step; `nothing`: Hairer's estimate, one more evaluation.
- `min_step`, `max_step`: smallest step before the solve stops (0: what rounding of the time allows) and largest one.
- `max_steps`: accepted and rejected steps together before the solve stops.
- `step_size`: take equal steps of at most this size that end on every save time; `nothing`: steps by the error, or one
  step from each save time to the next where the method estimates none.
- `controller`: a [`TorchController`](@ref HomoJL.TorchController); `nothing`: the method's own.
- `mass_matrix`: of M du/dt = f; `nothing`: the unit matrix.

Throws an `ArgumentError` for a value outside its range.
"""
struct Request
    name::String
    rtol::Float64
    atol::Float64
    first_step::Union{Nothing, Float64}
    min_step::Float64
    max_step::Float64
    max_steps::Int
    step_size::Union{Nothing, Float64}
    controller::Union{Nothing, TorchController}
    mass_matrix::Any

    function Request(
            name; rtol = 1.0e-3, atol = 1.0e-6, first_step = nothing, min_step = 0.0, max_step = Inf, max_steps = 10_000,
            step_size = nothing, controller = nothing, mass_matrix = nothing
        )
        require_tolerances(rtol, atol, max_steps)
        for (what, step) in (("first_step", first_step), ("step_size", step_size))
            require(isnothing(step) || (isfinite(step) && step > 0), "$what must be positive and finite, got $step")
        end
        require(0 <= min_step < max_step, "min_step must be >= 0 and below max_step, got $min_step")
        return new(name, rtol, atol, first_step, min_step, max_step, max_steps, step_size, controller, mass_matrix)
    end
end

"""
What is written down of a solve.

# Fields
- `save_times`: asked for, the first of them the initial time.
- `ts`: times that were saved; after a solve that stopped early, also the time that it stopped at.
- `us`: the states there; those after the first in the caller's arrays, if it gave any.
- `starts`, `sizes`: of the accepted steps, exactly as they were taken.
- `save_steps`, `save_fractions`: for each saved time after the first the step that it lies in, and where in it, in
  (0, 1]; exactly 1 means the end of the step.
- `ending`, `message`: how it ended, and one line on what happened and what to try, empty on success.
- `n_rejected`: steps tried in vain.
- `nfe`, `n_jvp`: evaluations of the field, and products with its Jacobian.
- `event`: the position of the condition that ended it, 0 where it was not a number, `nothing`: none.
"""
mutable struct Record{A}
    save_times::Vector{Float64}
    out::Union{Nothing, Vector{A}}
    keep::Any
    ts::Vector{Float64}
    us::Vector{A}
    starts::Vector{Float64}
    sizes::Vector{Float64}
    save_steps::Vector{Int}
    save_fractions::Vector{Float64}
    ending::Symbol
    message::String
    n_rejected::Int
    nfe::Int
    n_jvp::Int
    event::Union{Nothing, Int}
end

Record(times, u0::A, out, keep) where {A} = Record{A}(
    times, out, keep, times[1:1], A[u0], Float64[], Float64[], Int[], Float64[], :success, "", 0, 0, 0, nothing
)

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
function record_step!(record::Record, integrator, watch, request::Request, t::Float64)
    event = isnothing(watch) ? nothing : event_in(watch, integrator, t)
    if !isnothing(watch) && watch.which === 0
        return not_a_number!(record, integrator, request, t)
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

"End at the start of the step from `t`, in which a condition is no longer a number."
function not_a_number!(record::Record, integrator, request::Request, t::Float64)
    if record.ts[end] != t
        push!(record.ts, t)
        push!(record.us, copy(integrator.uprev))
    end
    record.ending = :diverged
    at = @sprintf("at t = %.6g after %d steps", t, length(record.starts))
    record.message = "$(request.name): $(SENTENCES[:diverged]) ($at); the event's condition is NaN in the next step"
    return true
end

"""
    record(f!, u0, ts, alg, request; jvp! = nothing, parts = nothing, watch = nothing, out = nothing, keep = nothing) -> Record

Integrate du/dt = f(u, t) from u(ts[1]) = u0 by a method of OrdinaryDiffEq, and write down what it did.

# Arguments
- `f!`: in-place vector field `f!(du, u, t)`; `du` and `u` are arrays of u0's type and shape that belong to the solver, `t`
  is a number of u0's element type.
- `u0`: initial state with elements of type `Float32` or `Float64`, in any kind of array; no element is accessed singly.
- `ts`: at least two times to save the state at, finite and strictly monotone; the first is the initial time.
- `alg`, `request`: how; see [`Request`](@ref HomoJL.Request).
- `jvp!`: for methods that ask for the Jacobian, its product with a vector, `jvp!(Jv, v, u, t)`; `nothing`: finite differences.
- `dense`: whether such a method gets the Jacobian as a matrix, rather than its products with vectors.
- `parts`: ranges of positions whose largest root mean square is the norm of the error; `nothing`: the whole state.
- `watch`: `(values!, direction, n, passed)` of conditions that end the solve, see `HomoJL.Watch`; `nothing`: none.
- `out`: `length(ts) - 1` arrays like u0 to save the states in; `nothing`: new ones.
- `keep`: called with the state at the start of every accepted step, which stays the solver's; `nothing`: not called.

Throws an `ArgumentError` for a wrong argument, and whatever the functions throw.
"""
function record(
        @nospecialize(f!), u0::AbstractArray, ts, alg, request::Request; jvp! = nothing, dense::Bool = length(u0) <= 64,
        parts = nothing, watch = nothing, out = nothing, keep = nothing
    )
    require_state(u0)
    u, times = copy(u0), checked_times(ts)
    record = Record(times, isnothing(out) ? copy(u0) : u0, out, keep)
    norm = error_norm(parts, length(u0))
    field = CountedField{eltype(u0)}(f!)
    derivatives = asks_for_jacobian(alg) ? Derivatives(field, jvp!, u, request.rtol, request.atol) : nothing
    watched = isnothing(watch) ? nothing : Watch(watch..., u, times[1])
    integrator = start(field, derivatives, dense, u, record, alg, request, norm, !isnothing(watched))
    if has_equal_steps(alg, request)
        equal_steps!(record, integrator, watched, request)
    else
        controlled_steps!(record, integrator, watched, field, derivatives, request, norm)
    end
    record.nfe, record.n_jvp = field.calls[], isnothing(derivatives) ? 0 : derivatives.n_jvp
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
function start(field, derivatives, dense::Bool, u, record, alg, request::Request, norm, watched::Bool)
    times, T = record.save_times, eltype(u)
    f = ode_function(field, derivatives, dense, request.mass_matrix)
    problem = SciMLBase.ODEProblem{true, SciMLBase.FullSpecialize}(f, u, (times[1], times[end]))
    # What interpolates is computed with each step only where something is going to ask for it.
    calck = watched || (!has_equal_steps(alg, request) && length(times) > 2)
    common = (;
        save_start = false, save_end = false, save_everystep = false, dense = false, calck,
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
    isnothing(request.controller) && return SciMLBase.init(problem, alg; common..., options...)
    return SciMLBase.init(problem, alg; common..., options..., controller = request.controller)
end

ode_function(field, ::Nothing, dense::Bool, ::Nothing) = SciMLBase.ODEFunction{true, SciMLBase.FullSpecialize}(field)

function ode_function(field, derivatives, dense::Bool, mass_matrix)
    F = SciMLBase.ODEFunction{true, SciMLBase.FullSpecialize}
    more = isnothing(mass_matrix) ? (;) : (; mass_matrix)
    isnothing(derivatives) && return F(field; more...)
    tgrad = TimeDerivative(derivatives)
    return dense ? F(field; tgrad, jac = Jacobian(derivatives), more...) : F(field; tgrad, jvp = JacobianVector(derivatives), more...)
end

# The small allowance keeps 0.3 / 0.1 from becoming four steps.
n_steps(span::Float64, request::Request) =
    isnothing(request.step_size) ? 1 : max(1, ceil(Int, abs(span) / request.step_size - 1.0e-9))

function equal_steps!(record::Record, integrator, watch, request::Request)
    times = record.save_times
    for (t0, t1) in zip(times, Iterators.drop(times, 1))
        n = n_steps(t1 - t0, request)
        for i in 1:n
            h = (t1 - t0) / n
            i < n && SciMLBase.add_tstop!(integrator, t0 + i * h)
            t = integrator.t
            i == 1 && SciMLBase.set_proposed_dt!(integrator, h)
            SciMLBase.step!(integrator)
            integrator.dt = integrator.t - t
            integrator.t == t && return stop!(record, integrator, request, :diverged, h)
            record_step!(record, integrator, watch, request, t) && return nothing
        end
    end
    bad = findfirst(u -> !all(isfinite, u), record.us)
    isnothing(bad) && return nothing
    place = bad == 1 ? @sprintf("at t = %.6g", times[1]) : @sprintf("in t = %.6g .. %.6g", record.ts[bad - 1], record.ts[bad])
    record.ending = :diverged
    record.message = "$(request.name): $(SENTENCES[:diverged]) ($place, after $(length(record.starts)) steps); " *
        "try a smaller step_size or an adaptive method"
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
    isnan(h) && return stop!(record, integrator, request, :diverged, h)
    h = copysign(min(abs(h), request.max_step), span)
    integrator.dt = h
    SciMLBase.set_proposed_dt!(integrator, h)

    while !reached(record)
        t = integrator.t
        smallest = max(request.min_step, 8 * eps(t))
        h = abs(SciMLBase.get_proposed_dt(integrator))
        h <= smallest && h < abs(t_end - t) && return stop!(record, integrator, request, :step_too_small, h)
        integrator.opts.dtmin = smallest
        isnothing(derivatives) || (derivatives.h = copysign(min(h, abs(t_end - t)), span))
        step_once!(integrator) || return stop!(record, integrator, request, :diverged, h)
        if !SciMLBase.successful_retcode(integrator.sol)
            return stop!(record, integrator, request, failure(integrator, field), integrator.dt)
        end
        # The last step may have been cut short.
        integrator.t == t_end && (integrator.dt = t_end - t)
        record_step!(record, integrator, watch, request, t) && break
    end
    all(isfinite, integrator.u) || return stop!(record, integrator, request, :diverged, integrator.dt)
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

"Save the last accepted state, and say what happened and what to try."
function stop!(record::Record, integrator, request::Request, ending::Symbol, h)
    t = integrator.t
    record.ending, record.n_rejected = ending, n_rejected(record, integrator)
    if record.ts[end] != t
        push!(record.ts, t)
        # A rejected step has already overwritten the state, but not the one before it.
        push!(record.us, copy(integrator.accept_step ? integrator.u : integrator.uprev))
    end
    last_resort = asks_for_jacobian(integrator.alg) ? "check the Jacobian, or suspect a field that is not smooth here" :
        "suspect a stiff field, for which there are Rodas5P, TRBDF2 and FBDF"
    advice = if ending === :max_steps
        "raise max_steps (now $(request.max_steps)), loosen rtol and atol, or $last_resort"
    elseif ending === :step_too_small
        "loosen rtol and atol, use Float64, or $last_resort"
    else
        "the field returns NaN or infinity near this state; look at it there"
    end
    counts = @sprintf("%d accepted and %d rejected steps, step %.2g", length(record.starts), record.n_rejected, abs(h))
    record.message = "$(request.name): $(SENTENCES[ending]) ($(@sprintf("at t = %.6g", t)) after $counts); $advice"
    return nothing
end
