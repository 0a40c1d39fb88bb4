# A field that is a black box, and its derivatives: Jacobian-vector products, the Jacobian, and the derivative in time.

"""
A field f!(du, u, t) as OrdinaryDiffEq calls it: counted, and given the time as a `T`.

The type of `f!` is deliberately unknown to the compiler: the solvers are then compiled once for each type of array instead
of once for each field, at the price of a dynamic dispatch, some tens of nanoseconds, at each call.
"""
struct CountedField{T}
    f!::Any
    calls::Base.RefValue{Int}
end

CountedField{T}(@nospecialize(f!)) where {T} = CountedField{T}(f!, Ref(0))

function (field::CountedField{T})(du, u, p, t) where {T}
    field.calls[] += 1
    field.f!(du, u, T(t))
    return nothing
end

"""
Derivatives of `field` at states like `u`, as OrdinaryDiffEq calls them: by the product `jvp!(Jv, v, u, t)`, whose type is unknown to
the compiler as the field's is, or by finite differences where that is `nothing`; counted.

# Fields
- `floor`: an element smaller than this is perturbed as if it were this large: where `atol` takes over from `rtol`.
- `h`: size of the step that is being tried; the derivative in time is taken within it.
- `base`, `base_u`, `base_t`: the field's last value at a point of linearisation, and that point.
"""
mutable struct Derivatives{T, A <: AbstractArray{T}}
    field::CountedField{T}
    jvp!::Any
    n_jvp::Int
    floor::T
    h::Float64
    base::A
    base_u::A
    base_t::Float64
    probe::A
    direction::A
    product::A
end

function Derivatives(field::CountedField{T}, jvp!, u::A, rtol, atol) where {T, A <: AbstractArray{T}}
    floor, buffer = T(atol / max(rtol, sqrt(eps(Float64)))), () -> similar(u)
    return Derivatives{T, A}(field, jvp!, 0, floor, 0.0, buffer(), buffer(), NaN, buffer(), buffer(), buffer())
end

"The field at the point of linearisation, evaluated once for all the products there."
function base!(d::Derivatives, u, p, t)
    if !(d.base_t == t && mapreduce(==, &, d.base_u, u))
        d.field(d.base, u, p, t)
        copyto!(d.base_u, u)
        d.base_t = t
    end
    return d.base
end

"""
    jacobian_vector!(Jv, d, v, u, p, t)

Write the product of the field's Jacobian at `(u, t)` with `v` into `Jv`; all have u's shape.

By finite differences, the largest relative change of an element is the square root of the rounding unit.
"""
function jacobian_vector!(Jv, d::Derivatives{T}, v, u, p, t) where {T}
    d.n_jvp += 1
    if !isnothing(d.jvp!)
        d.jvp!(Jv, v, u, T(t))
        return Jv
    end
    base = base!(d, u, p, t)
    floor = iszero(d.floor) ? smallest_scale(u) : d.floor
    largest = mapreduce((x, y) -> abs(x) / max(abs(y), floor), max, v, u)
    iszero(largest) && return fill!(Jv, zero(T))
    step = sqrt(eps(T)) / largest
    d.probe .= u .+ step .* v
    d.field(Jv, d.probe, p, t)
    Jv .= (Jv .- base) ./ step
    return Jv
end

"What counts as small in a state where no absolute tolerance says so."
function smallest_scale(u::AbstractArray{T}) where {T}
    largest = maximum(abs, u)
    return iszero(largest) ? one(T) : sqrt(eps(T)) * largest
end

"The product as Krylov methods ask for it: with flat vectors, of any type; the field sees the state's own."
function flat_product!(Jv, d::Derivatives{T, A}, v, u, p, t) where {T, A}
    if Jv isa A && v isa A
        jacobian_vector!(Jv, d, v, u, p, t)
    else
        copyto!(d.direction, v)
        copyto!(Jv, jacobian_vector!(d.product, d, d.direction, u, p, t))
    end
    return nothing
end

"The Jacobian as a matrix over the flat state, column by column."
function jacobian!(J, d::Derivatives, u, p, t)
    for i in 1:length(u)
        fill!(d.direction, 0)
        # Broadcast over a view, since some kinds of array refuse access to single elements.
        view(vec(d.direction), i:i) .= 1
        view(J, :, i) .= vec(jacobian_vector!(d.product, d, d.direction, u, p, t))
    end
    all(isfinite, J) || throw(NotFinite())
    return nothing
end

"Thrown where the Jacobian at an accepted state is not finite, since a factorisation refuses it; never leaves [`record`](@ref ZeroPaths.record)."
struct NotFinite <: Exception end

"""
The derivative of the field in time, by finite differences of order 2 that lie within the step which is being tried, so that the field
is not evaluated before the initial time or after the last one.
"""
function time_derivative!(dT, d::Derivatives{T}, u, p, t) where {T}
    base = base!(d, u, p, t)
    # The field sees times of type T: the difference is that of what it sees, and not smaller than it can tell apart.
    t0 = T(t)
    wanted = copysign(max(cbrt(eps(T)) * T(abs(d.h)), 100 * eps(t0)), T(d.h))
    t1 = t0 + wanted
    step = t1 - t0
    d.field(dT, u, p, t1)
    d.field(d.probe, u, p, t0 + 2 * step)
    dT .= (4 .* dT .- d.probe .- 3 .* base) ./ (2 * step)
    return nothing
end

"""
    forward_jvp(f!) -> function

A `jvp!(Jv, v, u, t)` from a field `f!(du, u, t)` that is written in Julia, by ForwardDiff's dual numbers: exact, at about
twice the cost of `f!`. The field must take arrays of dual numbers. Defined once ForwardDiff is loaded.
"""
function forward_jvp end

"""
    pullback!(method, gradient, parameter_gradients, f!, u, p, t, cotangent)

Write the vector-Jacobian products of a function that is written in Julia, `cotangent' df/du` into `gradient` and
`cotangent' df/dp` into each of `parameter_gradients`. `f!(out, u, p, t)`, or `f!(out, u, p)` where `t` is `nothing`;
`p` is `nothing`, an array, or a tuple of arrays.

The `method` is `Val(:ForwardDiff)`, whose cost grows with the number of elements of `u` and `p`, `Val(:ReverseDiff)` or
`Val(:Mooncake)`, whose does not; each is defined once its package is loaded.
"""
function pullback! end

# ---- layers, for the bridge: the extension of LuxCore adds the method for Lux's ----

"A layer with all its parameters in one vector: a field `f(u, p, t)` that does not depend on time, or a map `f(z, p)`."
struct LayerFunction{F, S} <: Function
    apply::F
    first::S
end

(f::LayerFunction)(u, p) = f.apply(u, p)
(f::LayerFunction)(u, p, t) = f.apply(u, p)

"A function from what Julia source ends in: itself, or a layer's."
as_function(value) = value

first_parameters(f::LayerFunction, seed::Int) = f.first(seed)
first_parameters(f, seed::Int) = throw(ArgumentError("a function has no parameters of its own: only a layer of Lux has"))

flattened(x::AbstractArray) = vec(x)
flattened(x) = reduce(vcat, map(flattened, values(x)); init = Float32[])

"Parameters of a template's structure from a vector."
unflattened(template, p) = first(unflattened(template, p, 0))
unflattened(x::AbstractArray, p, from::Int) = reshape(p[(from + 1):(from + length(x))], size(x)), from + length(x)
unflattened(x::Tuple{}, p, from::Int) = (), from

function unflattened(x::Tuple, p, from::Int)
    head, next = unflattened(first(x), p, from)
    rest, last = unflattened(Base.tail(x), p, next)
    return (head, rest...), last
end

function unflattened(x::NamedTuple{names}, p, from::Int) where {names}
    values, last = unflattened(Tuple(x), p, from)
    return NamedTuple{names}(values), last
end
