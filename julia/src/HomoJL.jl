"""
Implicit deep models: the Julia half of homojl.

[`integrate`](@ref) solves du/dt = f(u, t) with OrdinaryDiffEq's methods and returns, beside the states, the accepted step
sequence, what the solve cost and how it ended. [`fixed_point`](@ref) finds equilibria z = f(z) of a batch, and
[`trace_path`](@ref) follows the zero path of a homotopy to a root.
"""
module HomoJL

using LinearAlgebra: I, mul!
using PrecompileTools: @compile_workload, @setup_workload
using Printf: @sprintf

# Qualified throughout: the algorithms below bear the names that OrdinaryDiffEq gives to its own.
import ADTypes
import DLPack
import LinearAlgebra
import OrdinaryDiffEqCore
import OrdinaryDiffEqLowOrderRK
import OrdinaryDiffEqTsit5
import OrdinaryDiffEqVerner
import SciMLBase
import SciMLLogging

export integrate, Event, fixed_point, trace_path
export ArcLength, NaturalParameter
export PIController, Euler, Midpoint, RK4, Bosh3, Dopri5, Tsit5, Vern7, Rodas5P, TRBDF2, FBDF, AutoSwitch
export Picard, Anderson, Broyden, LimitedMemoryBroyden, NewtonKrylov, TrustRegion, DFSane, PseudoTransient, Relaxation
export Solution, FixedPointSolution, Stats, StepSequence, EventPoint, PathSolution, SolveError
export Status, SUCCESS, DIVERGED, STEP_TOO_SMALL, MAX_STEPS, STALLED, LEFT_BOUNDS, RETURNED, FOLD

include("packages.jl")
include("algorithms.jl")
include("fixed_point_algorithms.jl")
include("solution.jl")
include("step_control.jl")
include("events.jl")
include("derivatives.jl")
include("integrate.jl")
include("equilibrium.jl")
include("tableaus.jl")
include("gmres.jl")
include("path_algorithms.jl")
include("homotopy.jl")
include("path.jl")
include("device.jl")
include("precompile.jl")

end
