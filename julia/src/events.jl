# Events of a recorded solve: conditions whose change of sign ends it.

"""
Conditions that are followed along a recorded solve, which ends where one of them changes its sign.

# Fields
- `values!`: `values!(values, u, t)` writes the conditions' values.
- `direction`: 1: only where one rises through zero, -1: only where it falls, 0: either.
- `before`, `after`: the values at the start and at the end of a step; `probe`, a state's worth of memory.
- `which`: the condition that ended the solve, 0 where it is not a number there, `nothing` before.
"""
mutable struct Watch{A}
    values!::Any
    direction::Int
    before::Vector{Float64}
    after::Vector{Float64}
    probe::A
    which::Union{Nothing, Int}
end

"Watch `n` conditions from `u` at `t` on; `passed` is the position of one that has just changed its sign, or `nothing`."
function Watch(values!, direction::Int, n::Int, passed, u, t::Float64)
    watch = Watch(values!, direction, zeros(n), zeros(n), similar(u), nothing)
    watch.values!(watch.before, u, t)
    isnothing(passed) || (watch.before[passed] = 0.0)
    return watch
end

"The first condition that has changed its sign, or is no longer a number; one that was zero has not."
function changed(watch::Watch)
    return findfirst(eachindex(watch.before)) do i
        before, after = watch.before[i], watch.after[i]
        isnan(after) && return !isnan(before)
        (watch.direction >= 0 && before < 0 && after >= 0) || (watch.direction <= 0 && before > 0 && after <= 0)
    end
end

"The time of the first event in the step just taken from `t`, to rounding of the state's type, or `nothing`."
function event_in(watch::Watch, integrator, t::Float64)
    watch.values!(watch.after, integrator.u, integrator.t)
    if isnothing(changed(watch))
        copyto!(watch.before, watch.after)
        return nothing
    end
    low, high, h = 0.0, 1.0, integrator.t - t
    while high - low > eps(real(eltype(integrator.u)))
        middle = (low + high) / 2
        integrator(watch.probe, t + middle * h)
        watch.values!(watch.after, watch.probe, t + middle * h)
        low, high = isnothing(changed(watch)) ? (middle, high) : (low, middle)
    end
    s = high == 1.0 ? integrator.t : t + high * h
    s == integrator.t ? copyto!(watch.probe, integrator.u) : integrator(watch.probe, s)
    watch.values!(watch.after, watch.probe, s)
    which = something(changed(watch), 1)
    watch.which = isnan(watch.after[which]) ? 0 : which
    return s
end
