# The adjoint equation of a solve of a field in Julia, da/dt = -(df/du)' a, from each saved time back to the one before.

"How a solve is done: a method of OrdinaryDiffEq, what is asked of it, and whether its linear systems are dense."
struct Way
    method::Any
    request::Request
    dense::Bool
end

"""
    adjoint!(costate, totals, field, ts, us, cotangents, forward, backward, rule, parts) -> (ending, t, nfe, products)

Add to `costate` the gradient by the initial state, and to the arrays `totals` those by the parameters, of a loss whose gradients
by the states `us` at the times `ts` are `cotangents`, `nothing` for zero.

# Arguments
- `field`: `field.f!` and `field.jvp!` are those of [`record`](@ref ZeroPaths.record); `field.vjp!(gradient, gains, a, u, t)` writes
  a' df/du into `gradient` and a' df/dp into the arrays `gains`, which has none where they are not wanted.
- `forward`, `backward`: the [`Way`](@ref ZeroPaths.Way) in which the solve was done, and that of this one.
- `rule`: nodes and weights of a quadrature on (-1, 1): between two saved times the forward solve is done again, the state is its
  interpolant, and the parameters' gradients are quadratures over its steps. `nothing`: state, costate and gradients are
  integrated backwards as one vector.
- `parts`: of the error's norm, in the costate or in that vector; `nothing`: all of it.

`ending` is that of the solve that failed at the time `t`, if one did; `nfe` and `products` count evaluations and products.

References: Chen et al. (2018), arXiv 1806.07366, appendix B; for the quadrature, Norcliffe, Deisenroth (2023), TMLR.
"""
function adjoint!(costate, totals, field, ts, us, cotangents, forward::Way, backward::Way, rule, parts)
    nfe = products = 0
    for i in reverse(eachindex(ts))
        isnothing(cotangents[i]) || (costate .+= cotangents[i])
        (i == 1 || iszero(costate)) && continue
        ending, t, more_nfe, more_products = isnothing(rule) ?
            backsolve!(costate, totals, field, ts[i], ts[i - 1], us[i], backward, parts) :
            gauss!(costate, totals, field, ts[i], ts[i - 1], us[i - 1], forward, backward, rule, parts)
        nfe, products = nfe + more_nfe, products + more_products
        ending === :success || return ending, t, nfe, products
    end
    return :success, ts[1], nfe, products
end

"The adjoint equation where the state is known at all times; linear, so that it is its own product with a vector."
mutable struct AdjointField{A}
    solution::Any
    vjp!::Any
    u::A
    t::Float64
    products::Int
end

AdjointField(solution, vjp!, u::A) where {A} = AdjointField{A}(solution, vjp!, u, NaN, 0)

function (adjoint::AdjointField)(da, a, t, gains = ())
    adjoint.t == t || state_at!(adjoint.u, adjoint.solution, t)
    adjoint.t = t
    adjoint.products += 1
    adjoint.vjp!(da, gains, a, adjoint.u, t)
    da .*= -1
    return nothing
end

(adjoint::AdjointField)(Jv, v, a::AbstractArray, t) = adjoint(Jv, v, t)

# In place, OrdinaryDiffEqCore 4.15 looks for a field that the cache of its default algorithm does not have.
state_at!(u, solution, t) =
    solution.alg isa OrdinaryDiffEqCore.CompositeAlgorithm ? copyto!(u, solution(t)) : solution(u, t)

function gauss!(costate, totals, field, t1, t0, u0, forward::Way, backward::Way, (nodes, weights), parts)
    again = record(field.f!, u0, [t0, t1], forward.method, forward.request; field.jvp!, forward.dense, interpolate = true)
    again.ending === :success || return again.ending, again.ts[end], again.nfe, 0
    steps = isempty(totals) ? () : reverse(collect(zip(again.starts, again.sizes)))
    points = [t + h * (1 - x) / 2 for (t, h) in steps for x in nodes]
    parts_of_steps = [h * w / 2 for (_, h) in steps for w in weights]
    adjoint = AdjointField(again.solution, field.vjp!, similar(costate))
    back = record(
        adjoint, costate, [t1; points; t0], backward.method, from_step(backward.request, again.sizes[end]);
        jvp! = adjoint, backward.dense, parts,
    )
    back.ending === :success || return back.ending, back.ts[end], again.nfe, adjoint.products
    gradient, gains, T = similar(costate), map(similar, totals), eltype(costate)
    for (t, part, a) in zip(points, parts_of_steps, Iterators.drop(back.us, 1))
        adjoint(gradient, a, T(t), gains)
        foreach((total, gain) -> total .+= part .* gain, totals, gains)
    end
    copyto!(costate, back.us[end])
    return :success, t0, again.nfe, adjoint.products
end

"The request with a first step, where it says none."
function from_step(request::Request, h::Float64)
    isnothing(request.first_step) || return request
    return Request(; (name => getfield(request, name) for name in fieldnames(Request))..., first_step = abs(h))
end

function backsolve!(costate, totals, field, t1, t0, u1, backward::Way, parts)
    n = length(costate)
    u, a, du, da, gains = similar(u1), similar(u1), similar(u1), similar(u1), map(similar, totals)
    function together!(dw, w, t)
        copyto!(u, 1, w, 1, n)
        copyto!(a, 1, w, n + 1, n)
        field.f!(du, u, t)
        field.vjp!(da, gains, a, u, t)
        return fill_from!(dw, du, .-da, map(x -> .-vec(x), gains))
    end
    start = fill_from!(similar(u1, 2 * n + sum(length, totals; init = 0)), u1, costate, map(vec, totals))
    back = record(together!, start, [t1, t0], backward.method, backward.request; backward.dense, parts)
    back.ending === :success || return back.ending, back.ts[end], back.nfe, back.nfe
    ends, at = back.us[end], 2 * n
    copyto!(costate, 1, ends, n + 1, n)
    for total in totals
        copyto!(total, 1, ends, at + 1, length(total))
        at += length(total)
    end
    return :success, t0, back.nfe, back.nfe
end

"State, costate and gradients as one vector."
function fill_from!(w, u, a, gradients)
    at = 1
    for x in (u, a, gradients...)
        copyto!(w, at, x, 1, length(x))
        at += length(x)
    end
    return w
end
