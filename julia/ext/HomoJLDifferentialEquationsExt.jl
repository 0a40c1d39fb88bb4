module HomoJLDifferentialEquationsExt

import DifferentialEquations
import HomoJL
import LinearSolve
using HomoJL: AutoSwitch
using PrecompileTools: @compile_workload, @setup_workload

function HomoJL.method(algorithm::AutoSwitch, n::Int)
    linsolve = HomoJL.is_dense(algorithm, n) ? LinearSolve.LUFactorization() : LinearSolve.KrylovJL_GMRES()
    # The derivatives are HomoJL's own; this keeps the package from preparing automatic differentiation of the field.
    return DifferentialEquations.DefaultODEAlgorithm(; linsolve, autodiff = HomoJL.ADTypes.AutoFiniteDiff())
end

@setup_workload begin
    decay!(du, u, t) = (du .= -u)
    @compile_workload begin
        for T in (Float32, Float64)
            HomoJL.integrate(decay!, T[1, 2], [0.0, 0.5, 1.0], AutoSwitch(); keep_states = true)
        end
    end
end

end
