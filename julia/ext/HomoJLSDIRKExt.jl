module HomoJLSDIRKExt

import HomoJL
import LinearSolve
import OrdinaryDiffEqSDIRK
using HomoJL: TRBDF2
using PrecompileTools: @compile_workload, @setup_workload

function HomoJL.method(algorithm::TRBDF2, n::Int)
    linsolve = HomoJL.is_dense(algorithm, n) ? LinearSolve.LUFactorization() : LinearSolve.KrylovJL_GMRES()
    # The derivatives are HomoJL's own; this keeps the package from preparing automatic differentiation of the field.
    # Solving with the iteration matrix makes the estimate too small: five times the error and more at the same tolerance.
    return OrdinaryDiffEqSDIRK.TRBDF2(; linsolve, autodiff = HomoJL.ADTypes.AutoFiniteDiff(), smooth_est = false)
end

@setup_workload begin
    decay!(du, u, t) = (du .= -u)
    @compile_workload begin
        for T in (Float32, Float64), linear_solver in (:dense, :krylov)
            HomoJL.integrate(decay!, T[1, 2], [0.0, 0.5, 1.0], TRBDF2(; linear_solver); keep_states = true)
        end
    end
end

end
