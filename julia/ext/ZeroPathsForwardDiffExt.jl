module ZeroPathsForwardDiffExt

import ForwardDiff
import ZeroPaths

"One direction's dual numbers; its type is the tag that tells them from any others that the field may meet."
struct Direction end

"A product with a field's Jacobian, with the arrays of dual numbers that the last one used."
mutable struct ForwardProduct{F}
    f!::F
    buffers::Any
end

ZeroPaths.forward_jvp(f!) = ForwardProduct(f!, nothing)

function (product::ForwardProduct)(Jv, v, u, t)
    T = eltype(u)
    D = ForwardDiff.Dual{Direction, T, 1}
    buffers = product.buffers
    if isnothing(buffers) || eltype(buffers[1]) !== D || size(buffers[1]) != size(u)
        buffers = (similar(u, D), similar(u, D))
        product.buffers = buffers
    end
    return forward!(Jv, product.f!, buffers[1], buffers[2], v, u, t)
end

function (product::ForwardProduct)(Jv, v, u)
    return ForwardProduct((out, x, t) -> product.f!(out, x), product.buffers)(Jv, v, u, nothing)
end

function forward!(Jv, f!, du, x, v, u, t)
    x .= ForwardDiff.Dual{Direction}.(u, v)
    f!(du, x, t)
    Jv .= ForwardDiff.partials.(du, 1)
    return Jv
end

function ZeroPaths.pullback!(::Val{:ForwardDiff}, gradient, parameter_gradients, f!, u, p, t, cotangent)
    ForwardDiff.gradient!(gradient, x -> pulled(f!, x, p, t, cotangent), u)
    for (i, target) in enumerate(parameter_gradients)
        ForwardDiff.gradient!(target, q -> pulled(f!, u, with_parameter(p, i, q), t, cotangent), parameter(p, i))
    end
    return nothing
end

"The product of the cotangent with f; its gradient is the vector-Jacobian product."
function pulled(f!, u, p, t, cotangent)
    out = similar(u, promote_type(eltype(u), parameter_type(p)))
    isnothing(t) ? f!(out, u, p) : f!(out, u, p, t)
    return sum(cotangent .* out)
end

parameter(p::AbstractArray, i) = p
parameter(p::Tuple, i) = p[i]
with_parameter(p::AbstractArray, i, q) = q
with_parameter(p::Tuple, i, q) = Base.setindex(p, q, i)
parameter_type(::Nothing) = Bool
parameter_type(p::AbstractArray) = eltype(p)
parameter_type(p::Tuple) = promote_type(map(eltype, p)...)

end
