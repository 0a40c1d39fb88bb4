module HomoJLRosenbrockExt

import HomoJL
import LinearSolve
import OrdinaryDiffEqRosenbrock
using HomoJL: Rodas5P
using PrecompileTools: @compile_workload, @setup_workload

function HomoJL.method(algorithm::Rodas5P, n::Int)
    linsolve = HomoJL.is_dense(algorithm, n) ? LinearSolve.LUFactorization() : LinearSolve.KrylovJL_GMRES()
    # The derivatives are HomoJL's own; this keeps the package from preparing automatic differentiation of the field.
    return OrdinaryDiffEqRosenbrock.Rodas5P(; linsolve, autodiff = HomoJL.ADTypes.AutoFiniteDiff())
end

@setup_workload begin
    decay!(du, u, t) = (du .= -u)
    @compile_workload begin
        for T in (Float32, Float64), linear_solver in (:dense, :krylov)
            HomoJL.integrate(decay!, T[1, 2], [0.0, 0.5, 1.0], Rodas5P(; linear_solver); keep_states = true)
        end
    end
end

end
