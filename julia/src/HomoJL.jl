"""
Implicit deep models: the Julia half of homojl.

[`integrate`](@ref) solves du/dt = f(u, t) with OrdinaryDiffEq's explicit Runge-Kutta methods and returns, beside the
states, the accepted step sequence, what the solve cost and how it ended.
"""
module HomoJL

using PrecompileTools: @compile_workload, @setup_workload
using Printf: @sprintf

# Qualified throughout: the algorithms below bear the names that OrdinaryDiffEq gives to its own.
import OrdinaryDiffEqCore
import OrdinaryDiffEqLowOrderRK
import OrdinaryDiffEqTsit5
import OrdinaryDiffEqVerner
import SciMLBase
import SciMLLogging

export integrate
export PIController, Euler, Midpoint, RK4, Bosh3, Dopri5, Tsit5, Vern7
export Solution, Stats, StepSequence, SolveError
export Status, SUCCESS, DIVERGED, STEP_TOO_SMALL, MAX_STEPS

include("algorithms.jl")
include("solution.jl")
include("step_control.jl")
include("integrate.jl")
include("precompile.jl")

end
