# How to find an equilibrium: one small immutable object per method, holding its tolerances.

"""
Supertype of every method that [`fixed_point`](@ref) takes.

A sample has converged when norm(f(z) - z) <= atol + rtol norm(f(z)), the Euclidean norm over that sample. All methods have

- `rtol`, `atol`: relative and absolute tolerance, not negative, not both zero; `atol` in the unit of the state.
- `max_steps`: iterations before the solve stops.

and throw an `ArgumentError` for a value outside its range.
"""
abstract type AbstractFixedPointAlgorithm end

function require_limits(rtol, atol, max_steps)
    require(isfinite(rtol) && rtol >= 0, "rtol must be a finite number >= 0, got $rtol")
    require(isfinite(atol) && atol >= 0, "atol must be a finite number >= 0, got $atol")
    require(rtol + atol > 0, "rtol and atol must not both be zero")
    return require(max_steps >= 1, "max_steps must be at least 1, got $max_steps")
end

"""
    Picard(; rtol = 1e-4, atol = 1e-6, max_steps = 100, damping = 0)

z <- (1 - damping) f(z) + damping z, each sample by itself: converges where f contracts. `damping` lies in [0, 1).
"""
Base.@kwdef struct Picard <: AbstractFixedPointAlgorithm
    rtol::Float64 = 1.0e-4
    atol::Float64 = 1.0e-6
    max_steps::Int = 100
    damping::Float64 = 0.0

    function Picard(rtol, atol, max_steps, damping)
        require_limits(rtol, atol, max_steps)
        require(0 <= damping < 1, "damping must lie in [0, 1), got $damping")
        return new(rtol, atol, max_steps, damping)
    end
end

"""
    Anderson(; rtol = 1e-4, atol = 1e-6, max_steps = 100, memory = 6, mixing = 1, regularization = 1e-8)

Anderson acceleration, each sample by itself: the combination of the last iterates whose residuals cancel best.

# Fields
- `memory`: how many iterates are combined.
- `mixing`: in (0, 1]; how much of f(z) rather than z enters.
- `regularization`: added to the diagonal of the scaled least-squares problem.

References: Anderson (1965), J. ACM 12(4); Walker, Ni (2011), SIAM J. Numer. Anal. 49(4).
"""
Base.@kwdef struct Anderson <: AbstractFixedPointAlgorithm
    rtol::Float64 = 1.0e-4
    atol::Float64 = 1.0e-6
    max_steps::Int = 100
    memory::Int = 6
    mixing::Float64 = 1.0
    regularization::Float64 = 1.0e-8

    function Anderson(rtol, atol, max_steps, memory, mixing, regularization)
        require_limits(rtol, atol, max_steps)
        require(memory >= 1, "memory must be at least 1, got $memory")
        require(0 < mixing <= 1, "mixing must lie in (0, 1], got $mixing")
        require(regularization >= 0, "regularization must be >= 0, got $regularization")
        return new(rtol, atol, max_steps, memory, mixing, regularization)
    end
end

"""
    Broyden(; rtol = 1e-4, atol = 1e-6, max_steps = 100)

NonlinearSolve's `Broyden` with the whole matrix, from the Jacobian of z - f(z) = z; for up to 4,096 unknowns.
"""
Base.@kwdef struct Broyden <: AbstractFixedPointAlgorithm
    rtol::Float64 = 1.0e-4
    atol::Float64 = 1.0e-6
    max_steps::Int = 100

    function Broyden(rtol, atol, max_steps)
        require_limits(rtol, atol, max_steps)
        return new(rtol, atol, max_steps)
    end
end

"""
    LimitedMemoryBroyden(; rtol = 1e-4, atol = 1e-6, max_steps = 100, memory = 30)

NonlinearSolve's `LimitedMemoryBroyden`, from the Jacobian of z - f(z) = z; `memory` is how many updates are kept.
"""
Base.@kwdef struct LimitedMemoryBroyden <: AbstractFixedPointAlgorithm
    rtol::Float64 = 1.0e-4
    atol::Float64 = 1.0e-6
    max_steps::Int = 100
    memory::Int = 30

    function LimitedMemoryBroyden(rtol, atol, max_steps, memory)
        require_limits(rtol, atol, max_steps)
        require(memory >= 1, "memory must be at least 1, got $memory")
        return new(rtol, atol, max_steps, memory)
    end
end

"""
    NewtonKrylov(; rtol = 1e-4, atol = 1e-6, max_steps = 100, krylov_steps = 30)

NonlinearSolve's `NewtonRaphson` with a line search, its linear systems solved by GMRES on Jacobian-vector products, as
exactly as the progress made deserves. `krylov_steps`: most products for one linear system.

References: Eisenstat, Walker (1996), SIAM J. Sci. Comput. 17(1).
"""
Base.@kwdef struct NewtonKrylov <: AbstractFixedPointAlgorithm
    rtol::Float64 = 1.0e-4
    atol::Float64 = 1.0e-6
    max_steps::Int = 100
    krylov_steps::Int = 30

    function NewtonKrylov(rtol, atol, max_steps, krylov_steps)
        require_limits(rtol, atol, max_steps)
        require(krylov_steps >= 1, "krylov_steps must be at least 1, got $krylov_steps")
        return new(rtol, atol, max_steps, krylov_steps)
    end
end

"""
    TrustRegion(; rtol = 1e-4, atol = 1e-6, max_steps = 100)

NonlinearSolve's `TrustRegion`: Newton's method within a region of trust, from bad starts. It needs the whole Jacobian, which
is made of as many Jacobian-vector products as a sample has elements; for up to 4,096 unknowns.
"""
Base.@kwdef struct TrustRegion <: AbstractFixedPointAlgorithm
    rtol::Float64 = 1.0e-4
    atol::Float64 = 1.0e-6
    max_steps::Int = 100

    function TrustRegion(rtol, atol, max_steps)
        require_limits(rtol, atol, max_steps)
        return new(rtol, atol, max_steps)
    end
end

"""
    DFSane(; rtol = 1e-4, atol = 1e-6, max_steps = 100)

NonlinearSolve's `DFSane`: spectral residual steps without a Jacobian.

References: La Cruz, Martinez, Raydan (2006), Math. Comput. 75.
"""
Base.@kwdef struct DFSane <: AbstractFixedPointAlgorithm
    rtol::Float64 = 1.0e-4
    atol::Float64 = 1.0e-6
    max_steps::Int = 100

    function DFSane(rtol, atol, max_steps)
        require_limits(rtol, atol, max_steps)
        return new(rtol, atol, max_steps)
    end
end

"""
    PseudoTransient(; rtol = 1e-4, atol = 1e-6, max_steps = 100, first_step = 1, krylov_steps = 30)

NonlinearSolve's `PseudoTransient`: implicit Euler steps of dz/ds = f(z) - z that grow as the residual falls, until they are
Newton's; `first_step` is the size of the first one, `krylov_steps` the most products for one linear system.

References: Kelley, Keyes (1998), SIAM J. Numer. Anal. 35(2).
"""
Base.@kwdef struct PseudoTransient <: AbstractFixedPointAlgorithm
    rtol::Float64 = 1.0e-4
    atol::Float64 = 1.0e-6
    max_steps::Int = 100
    first_step::Float64 = 1.0
    krylov_steps::Int = 30

    function PseudoTransient(rtol, atol, max_steps, first_step, krylov_steps)
        require_limits(rtol, atol, max_steps)
        require(isfinite(first_step) && first_step > 0, "first_step must be positive and finite, got $first_step")
        require(krylov_steps >= 1, "krylov_steps must be at least 1, got $krylov_steps")
        return new(rtol, atol, max_steps, first_step, krylov_steps)
    end
end

"""
    Relaxation(; rtol = 1e-4, atol = 1e-6, max_steps = 1000)

The ODE dz/ds = f(z) - z followed until it rests by SteadyStateDiffEq's `DynamicSS` and `Tsit5`; `max_steps` counts its steps.
"""
Base.@kwdef struct Relaxation <: AbstractFixedPointAlgorithm
    rtol::Float64 = 1.0e-4
    atol::Float64 = 1.0e-6
    max_steps::Int = 1000

    function Relaxation(rtol, atol, max_steps)
        require_limits(rtol, atol, max_steps)
        return new(rtol, atol, max_steps)
    end
end

name(algorithm::AbstractFixedPointAlgorithm) = String(nameof(typeof(algorithm)))

"The package that does the work of an algorithm, `nothing` for HomoJL itself."
package(::Union{Picard, Anderson}) = nothing
package(::AbstractFixedPointAlgorithm) = :NonlinearSolve
package(::Relaxation) = :SteadyStateDiffEq
