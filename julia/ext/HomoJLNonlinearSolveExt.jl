module HomoJLNonlinearSolveExt

import HomoJL
import NonlinearSolve
using HomoJL: AbstractFixedPointAlgorithm, CountedMap, Progress
using NonlinearSolve: ADTypes, NonlinearSolveBase, SciMLBase

const MOST_UNKNOWNS = 4096  # of methods that hold a matrix

"z - f(z)."
struct Residual{M <: CountedMap}
    map::M
end

function (residual::Residual)(out, z, p)
    HomoJL.apply!(residual.map, out, z)
    out .= z .- out
    return nothing
end

"Its Jacobian-vector product."
struct Product{M <: CountedMap}
    map::M
end

function (product::Product)(out, v, z, p)
    HomoJL.push_forward!(product.map, out, v, z)
    out .= v .- out
    return nothing
end

"Its Jacobian: blocks, of which one product gives a column each."
struct Blocks{M <: CountedMap}
    map::M
end

function (blocks::Blocks)(matrix, z, p)
    map = blocks.map
    n = length(z) ÷ map.samples
    v, out = similar(z), similar(z)
    fill!(matrix, 0)
    for i in 1:n
        fill!(v, 0)
        fill!(view(HomoJL.columns(map, v), i, :), 1)
        Product(map)(out, v, z, p)
        for s in 1:map.samples
            rows = ((s - 1) * n + 1):(s * n)
            matrix[rows, (s - 1) * n + i] .= view(out, rows)
        end
    end
    return nothing
end

gmres(algorithm) = NonlinearSolve.LinearSolve.KrylovJL_GMRES(; gmres_restart = algorithm.krylov_steps)
differences() = ADTypes.AutoFiniteDiff()

function method(algorithm::HomoJL.NewtonKrylov, z)
    return NonlinearSolve.NewtonRaphson(;
        linsolve = gmres(algorithm), linesearch = NonlinearSolve.LineSearch.BackTracking(),
        forcing = NonlinearSolve.EisenstatWalkerForcing2(; η₀ = 0.3), concrete_jac = false,
        autodiff = differences(), jvp_autodiff = differences(), vjp_autodiff = differences(),
    )
end

function method(algorithm::HomoJL.PseudoTransient, z)
    return NonlinearSolve.PseudoTransient(;
        linsolve = gmres(algorithm), alpha_initial = algorithm.first_step, concrete_jac = false,
        autodiff = differences(), jvp_autodiff = differences(), vjp_autodiff = differences(),
    )
end

method(::HomoJL.TrustRegion, z) = NonlinearSolve.TrustRegion(; concrete_jac = true, autodiff = differences())
# The residual is nearly z where f contracts, hence an initial Jacobian of 1.
method(::HomoJL.Broyden, z) = NonlinearSolve.Broyden(; alpha = one(eltype(z)))
function method(algorithm::HomoJL.LimitedMemoryBroyden, z)
    threshold = min(algorithm.memory, length(z))
    return NonlinearSolve.LimitedMemoryBroyden(; alpha = one(eltype(z)), threshold, max_resets = 100)
end
method(::HomoJL.DFSane, z) = NonlinearSolve.DFSane()

holds_matrix(::AbstractFixedPointAlgorithm) = false
holds_matrix(::Union{HomoJL.Broyden, HomoJL.TrustRegion}) = true

function HomoJL.search!(algorithm::AbstractFixedPointAlgorithm, map::CountedMap, z, progress::Progress)
    HomoJL.require(
        !holds_matrix(algorithm) || length(z) <= MOST_UNKNOWNS,
        "$(HomoJL.name(algorithm)) holds a matrix of $(length(z)) x $(length(z)), more than $MOST_UNKNOWNS each way; " *
            "use LimitedMemoryBroyden() or NewtonKrylov()",
    )
    HomoJL.start!(map, z, progress) || return nothing
    problem = SciMLBase.NonlinearProblem(nonlinear_function(algorithm, map, z), vec(z))
    cache = SciMLBase.init(
        problem, method(algorithm, z); maxiters = algorithm.max_steps + 1, verbose = false,
        # HomoJL decides when to stop, sample by sample.
        abstol = zero(eltype(z)), reltol = zero(eltype(z)),
        termination_condition = NonlinearSolveBase.AbsNormTerminationMode(Base.Fix1(maximum, abs)),
        options(algorithm, eltype(z))...,
    )
    for iteration in 1:algorithm.max_steps
        SciMLBase.step!(cache)
        u = HomoJL.columns(map, NonlinearSolveBase.get_u(cache))
        r = HomoJL.columns(map, NonlinearSolveBase.get_fu(cache))
        HomoJL.update!(progress, iteration, u, HomoJL.column_norms(r), HomoJL.column_norms(u .- r))
        HomoJL.finished(progress) && return nothing
        cache.force_stop && return HomoJL.stop!(progress, HomoJL.STALLED, iteration)
    end
    return HomoJL.stop!(progress, HomoJL.MAX_STEPS, algorithm.max_steps)
end

options(::AbstractFixedPointAlgorithm, T) = (;)
function options(algorithm::Union{HomoJL.NewtonKrylov, HomoJL.PseudoTransient}, T)
    return (; linsolve_kwargs = (; abstol = zero(T), reltol = T(1.0e-2), maxiters = algorithm.krylov_steps))
end

function nonlinear_function(algorithm, map::CountedMap, z)
    F = SciMLBase.NonlinearFunction{true, SciMLBase.FullSpecialize}
    isnothing(map.jvp!) && return F(Residual(map))
    algorithm isa HomoJL.TrustRegion || return F(Residual(map); jvp = Product(map))
    return F(Residual(map); jac = Blocks(map), jac_prototype = fill!(similar(z, length(z), length(z)), 0))
end

end
