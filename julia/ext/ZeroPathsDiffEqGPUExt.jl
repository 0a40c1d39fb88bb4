"Ensembles of small systems in DiffEqGPU's kernels. They have run on KernelAbstractions' `CPU()`, and on no GPU yet."
module ZeroPathsDiffEqGPUExt

import DiffEqGPU
import KernelAbstractions
import ZeroPaths
using StaticArrays: MArray, SArray, SVector
using ZeroPaths: SciMLBase, require

"A function of one sample, of size `S`, on static vectors and of the time that has passed; `p` ends with the sample's number."
struct Field{S, in_place, F, T}
    f::F
    start::T
    direction::T
end

function (field::Field{S, in_place})(u::SVector{N}, p, passed) where {S, in_place, N}
    E, state, t = promote_type(eltype(u), typeof(passed)), SArray{S}(Tuple(u)), field.start + field.direction * passed
    value = in_place ? MArray{S, E}(undef) : field.f(state, first(p), t)
    in_place && field.f(value, state, first(p), t)
    return field.direction * SVector{N, E}(ntuple(i -> value[i], Val(N)))
end

"Called after each step of a sample: counts it, negatively where the state is no longer finite, and says whether to stop."
struct Watch{V, R, T}
    steps::V
    reached::R
    most::Int
    least::T
end

function (watch::Watch)(u, t, integrator)
    i, finite = last(integrator.p), isfinite(t) && all(isfinite, u)
    steps = watch.steps[i] + one(eltype(watch.steps))
    watch.steps[i] = finite ? steps : -steps
    isfinite(t) && (watch.reached[i] = t)
    # DiffEqGPU ends all samples with an error where one needs a step below 1e-14. The last step may be small: it is what is left.
    small = hasfield(typeof(integrator), :dtnew) && integrator.dtnew < watch.least < (integrator.tf - integrator.t) / 2
    return small || !finite || steps >= watch.most
end

function kernel_method(method)
    name = chopprefix(string(nameof(typeof(method))), "GPU")
    known = filter(n -> getproperty(DiffEqGPU, n) isa Type{<:DiffEqGPU.GPUODEAlgorithm}, names(DiffEqGPU))
    Symbol("GPU", name) in known && return getproperty(DiffEqGPU, Symbol("GPU", name))()
    throw(ArgumentError("DiffEqGPU's kernels have no $name, but $(join(map(n -> chopprefix(string(n), "GPU"), known), ", "))"))
end

static(x::AbstractArray) = SArray{Tuple{size(x)...}}(x)
static(x::Tuple) = map(static, x)
static(::Nothing) = nothing

# With their types as arguments, so that it is compiled for them.
problems_of(::Type{U}, ::Type{P}, field, span, u0, p, samples) where {U, P} = map(1:samples) do i
    DiffEqGPU.make_prob_compatible(SciMLBase.ODEProblem{false}(field, U(u0(i)), (zero(span), span), (convert(P, p(i)), Int32(i))))
end

function ZeroPaths.kernel_ensemble!(out, backend, f, in_place::Bool, u0, p, times, method, request)
    T, first_u, first_p, (n, samples, _) = eltype(out), u0(1), p(1), size(out)
    require(Base.summarysize((first_u, first_p)) < 4096, "a state and parameters for DiffEqGPU's kernels are less than 4 KB")
    span, direction, saveat = abs(times[end] - times[1]), sign(times[end] - times[1]), T.(abs.(times .- times[1]))
    require(request.max_step >= span, "DiffEqGPU's kernels take no largest step: leave max_step out")
    field = Field{Tuple{size(first_u)...}, in_place, typeof(f), T}(f, times[1], direction)
    problems = problems_of(SVector{n, T}, typeof(static(first_p)), field, saveat[end], u0, p, samples)
    require(isbitstype(eltype(problems)), "a function for DiffEqGPU's kernels holds no arrays: pass them as parameters")
    there(x) = copyto!(KernelAbstractions.allocate(backend, eltype(x), size(x)), x)
    steps, reached, equal = there(zeros(Int32, samples)), there(zeros(T, samples)), request.step_size
    most, least = isnothing(equal) ? request.max_steps : typemax(Int), T(max(request.min_step, 1.0e-12, 4 * eps(T(span))))
    watch = Watch(ZeroPaths.in_kernel(steps), ZeroPaths.in_kernel(reached), most, least)
    stop = SciMLBase.DiscreteCallback(watch, SciMLBase.terminate!; save_positions = (false, false))
    dt = isnothing(equal) ? min(something(request.first_step, 1.0e-6 * span), span) : span / max(1, ceil(Int, span / equal - 1.0e-9))
    _, us = (isnothing(equal) ? DiffEqGPU.vectorized_asolve : DiffEqGPU.vectorized_solve)(
        there(problems), SciMLBase.ODEProblem{false}(field, problems[1].u0, problems[1].tspan, problems[1].p), kernel_method(method);
        dt, saveat, abstol = T(request.atol), reltol = T(request.rtol),
        callback = SciMLBase.CallbackSet(convert(DiffEqGPU.GPUDiscreteCallback, stop)),
    )
    counts, ends = Array(steps), min.(Array(reached), saveat[end])
    saved = [(i - 1) * length(times) + min(k, searchsortedlast(saveat, ends[i])) for i in 1:samples, k in 2:length(times)]
    copyto!(out, reshape(reinterpret(T, us[there(saved)]), size(out)))
    ending(n, t) = n < 0 ? :diverged : t >= saveat[end] ? :success : n >= most ? :max_steps : :step_too_small
    return times[1] .+ direction .* Float64.(ends), Int.(abs.(counts)), map(ending, counts, ends)
end

end
