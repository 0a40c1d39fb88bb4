# Step-size control: the error norm, the first step, and the control that reproduces PyTorch's steps.

"""
    ErrorNorm(parts)

Norm of a scaled error: the root mean square over the whole array where `parts` is empty, else the largest of the root
mean squares of the parts; elements outside every part are left out. `parts` is a tuple of ranges of positions in the flat
array. The norm of a number is its absolute value: OrdinaryDiffEq broadcasts it to scale each element, which is why it is plain
data that a GPU kernel can take.
"""
struct ErrorNorm{N}
    parts::NTuple{N, UnitRange{Int}}
end

Base.broadcastable(norm::ErrorNorm) = Ref(norm)

root_mean_square(x) = sqrt(sum(abs2, x) / length(x))

(::ErrorNorm)(x::Number, t) = abs(x)
(::ErrorNorm{0})(x::AbstractArray, t) = root_mean_square(x)
(norm::ErrorNorm)(x::AbstractArray, t) = maximum(part -> root_mean_square(view(vec(x), part)), norm.parts)

"The order of a method; `unknown` where it chooses one itself and tells none."
function order_of(alg; unknown = 2)
    return try
        OrdinaryDiffEqCore.alg_order(alg)
    catch
        unknown
    end
end

"""
    initial_step(field, u, k, t, span, alg, rtol, atol, norm) -> Float64

Hairer's estimate of a good first step from the state `u` with derivative `k` at time `t`: signed like `span`, at most
`span` long, NaN if the start is not finite. `alg` is OrdinaryDiffEq's method. Evaluates the field once.

References: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, II.4.
"""
function initial_step(
        field, u::AbstractArray{T}, k::AbstractArray{T}, t::Float64, span::Float64, alg,
        rtol::Float64, atol::Float64, norm::ErrorNorm
    ) where {T}
    scale = T(atol) .+ T(rtol) .* abs.(u)
    d0, d1 = Float64(norm(u ./ scale, t)), Float64(norm(k ./ scale, t))
    isfinite(d0) && isfinite(d1) || return NaN
    h0 = d0 < 1.0e-5 || d1 < 1.0e-5 ? 1.0e-6 : 0.01 * d0 / d1
    h0 = copysign(min(h0, abs(span)), span)
    k_probe = similar(k)
    field(k_probe, u .+ T(h0) .* k, SciMLBase.NullParameters(), t + h0)
    d2 = Float64(norm((k_probe .- k) ./ scale, t)) / abs(h0)
    steepest = max(d1, d2)
    isfinite(steepest) || return h0
    h1 = steepest <= 1.0e-15 ? max(1.0e-6, abs(h0) * 1.0e-3) : (0.01 / steepest)^(1 / order_of(alg))
    return copysign(min(100 * abs(h0), h1, abs(span)), span)
end

"""
    TorchController(; safety = 0.9, min_factor = 0.2, max_factor = 10, beta1 = nothing, beta2 = nothing, beta3 = 0)

Proportional-integral step-size control; `nothing` takes the value that suits the method's order.

After a step of size `h` with error ratio `e` (1 is exactly the tolerance) that follows one of size `h_old` with ratio
`e_old`, the step is divided by `e^beta1 / e_old^beta2 / (h / h_old)^beta3 / safety`, a quotient kept between `1/max_factor`
and `1/min_factor`. After the first step it is `e^(1 / order) / safety`; after a rejected one the same, but at least 1.001,
and `1/min_factor` where `e` is not finite.

# Fields
- `safety`: in (0, 1]; how much of the largest admissible step is taken.
- `min_factor`, `max_factor`: bounds of the change from one step to the next.
- `beta1`, `beta2`, `beta3`: exponents, by default 0.85/order, 0.2/order and 0: the 0.17 and 0.04 of Hairer's dopri5. With
  (1 + p)/order, p/order and p the control expects the admissible step to go on growing as it has just done, by the part
  p: Python's `PredictiveController`, for p = 1 Gustafsson's predictive control.

All are dimensionless. Throws an `ArgumentError` for a value outside its range.

References: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, II.4; Hairer, Wanner (1996), II, IV.2
and IV.8; Gustafsson (1994), ACM Trans. Math. Softw. 20(4).
"""
Base.@kwdef struct TorchController <: OrdinaryDiffEqCore.AbstractController
    safety::Float64 = 0.9
    min_factor::Float64 = 0.2
    max_factor::Float64 = 10.0
    beta1::Union{Nothing, Float64} = nothing
    beta2::Union{Nothing, Float64} = nothing
    beta3::Float64 = 0.0

    function TorchController(safety, min_factor, max_factor, beta1, beta2, beta3)
        require(0 < safety <= 1, "safety must lie in (0, 1], got $safety")
        require(0 < min_factor < 1, "min_factor must lie in (0, 1), got $min_factor")
        require(max_factor > 1, "max_factor must be greater than 1, got $max_factor")
        return new(safety, min_factor, max_factor, beta1, beta2, beta3)
    end
end

"""
What [`TorchController`](@ref) knows during one solve: its exponents for the method's order, size and error ratio of the last
accepted step (NaN before the first), and the error ratio of the step just tried, of type `E`.
"""
mutable struct TorchControllerCache{E} <: OrdinaryDiffEqCore.AbstractControllerCache
    controller::TorchController
    order::Int
    beta1::Float64
    beta2::Float64
    size_old::Float64
    ratio_old::Float64
    EEst::E
end

# The smallest error ratio that counts as the one before.
const SMALLEST_RATIO = 1.0e-4

function OrdinaryDiffEqCore.setup_controller_cache(
        alg, cache, controller::TorchController, ::Type{E}, disco_probs
    ) where {E}
    order = OrdinaryDiffEqCore.alg_order(alg)
    beta1 = something(controller.beta1, 0.85 / order)
    beta2 = something(controller.beta2, 0.2 / order)
    return TorchControllerCache{E}(controller, order, beta1, beta2, NaN, NaN, oneunit(E))
end

# The quotient that an accepted step is divided by.
function OrdinaryDiffEqCore.stepsize_controller!(integrator, cache::TorchControllerCache, alg)
    (; safety, min_factor, max_factor, beta3) = cache.controller
    ratio, size = Float64(cache.EEst), Float64(integrator.dt)
    quotient = if isnan(cache.size_old)
        ratio^(1 / cache.order) / safety
    else
        ratio^cache.beta1 / cache.ratio_old^cache.beta2 / (size / cache.size_old)^beta3 / safety
    end
    return clamp(quotient, 1 / max_factor, 1 / min_factor)
end

function OrdinaryDiffEqCore.step_accept_controller!(integrator, cache::TorchControllerCache, alg, quotient)
    cache.size_old, cache.ratio_old = Float64(integrator.dt), max(Float64(cache.EEst), SMALLEST_RATIO)
    return integrator.dt / quotient
end

function OrdinaryDiffEqCore.step_reject_controller!(integrator, cache::TorchControllerCache, alg)
    (; safety, min_factor) = cache.controller
    ratio = Float64(cache.EEst)
    quotient = isfinite(ratio) ? max(ratio^(1 / cache.order) / safety, 1.001) : Inf
    integrator.dt /= min(quotient, 1 / min_factor)
    return nothing
end
