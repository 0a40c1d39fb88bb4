# Compiles, when the package is installed, what a first solve on the CPU needs.

@setup_workload begin
    decay!(du, u, t) = (du .= -u)
    halve!(out, z) = (out .= z ./ 2 .+ 1)
    @compile_workload begin
        for T in (Float32, Float64)
            for method in STEPPERS
                adaptive = method in STEPPERS[3:4]  # RK4 takes equal steps here
                request = adaptive ? Request(; controller = TorchController()) : Request(; step_size = 0.5)
                watch = adaptive ? ((values, u, t) -> (values[1] = t - 0.75; nothing), 0, 1, nothing) : nothing
                record(decay!, T[1, 2], [0.0, 0.5, 1.0], method, request; keep = sum)
                record(decay!, T[1, 2], [1.0, 0.0], method, request; parts = [1:1], watch, out = [T[0, 0]])
            end
            for algorithm in (SamplewisePicard(samples = 2), SamplewiseAnderson(samples = 2))
                equilibrium(halve!, zeros(T, 3, 2), algorithm)
            end
            follow(halve!, zeros(T, 2), ZeroPathTracker(), :fixed_point, nothing)
        end
    end
end

"Solve a little with a method for stiff fields, made as the bridge makes it."
function warm_up_stiff(Method, linear)
    decay!(du, u, t) = (du .= -u)
    for T in (Float32, Float64), (dense, linsolve) in ((true, linear.LUFactorization()), (false, linear.KrylovJL_GMRES()))
        method = Method(; autodiff = ADTypes.AutoFiniteDiff(), linsolve)
        record(decay!, T[1, 2], [0.0, 0.5, 1.0], method, Request(); dense, keep = sum)
    end
    return nothing
end
