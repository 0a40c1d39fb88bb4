"""
Equilibria of batches and zero paths of homotopies, for SciML's problems and with SciML's solutions.

[`SamplewisePicard`](@ref), [`SamplewiseAnderson`](@ref) and [`Samplewise`](@ref) solve a `NonlinearProblem` or a
`SteadyStateProblem` whose state is a batch, each sample to its own end; [`ZeroPathTracker`](@ref) follows the zero path of a
`HomotopyProblem`, through folds. ODEs are OrdinaryDiffEq's own. What PyTorch's homojl needs beside, the record of the
accepted steps of an ODE solve and the controller that reproduces PyTorch's steps, is here too and not exported.
"""
module ZeroPaths

using LinearAlgebra: I, mul!
using PrecompileTools: @compile_workload, @setup_workload
using SciMLBase: HomotopyProblem, NonlinearProblem, ReturnCode, SteadyStateProblem, init, remake, solve, solve!, step!,
    successful_retcode

import ADTypes
import DiffEqBase
import LinearAlgebra
import NonlinearSolveBase
import OrdinaryDiffEqCore
import OrdinaryDiffEqExplicitTableaus as Tableaus
import OrdinaryDiffEqLowOrderRK
import OrdinaryDiffEqTsit5
import SciMLBase
import SciMLLogging

export HomotopyProblem, NonlinearProblem, ReturnCode, SteadyStateProblem, init, remake, solve, solve!, step!, successful_retcode
export SamplewisePicard, SamplewiseAnderson, Samplewise, SampleReport
export ZeroPathTracker, ZeroPath, homotopy

include("endings.jl")
include("step_control.jl")
include("derivatives.jl")
include("events.jl")
include("record.jl")
include("adjoint.jl")
include("samplewise.jl")
include("anderson.jl")
include("nonlinear.jl")
include("homotopy.jl")
include("tracker.jl")
include("path.jl")
include("device.jl")
include("precompile.jl")

end
