# Compiles, when the package is installed, what a first solve on the CPU needs.

@setup_workload begin
    decay!(du, u, t) = (du .= -u)
    halve!(out, z) = (out .= z ./ 2 .+ 1)
    @compile_workload begin
        for T in (Float32, Float64)
            u0 = T[1, 2]
            for algorithm in (Euler(), Midpoint(), RK4(), Bosh3(), Dopri5(), Tsit5(), Vern7())
                integrate(decay!, u0, [0.0, 0.5, 1.0], algorithm; keep_states = true)
            end
            for algorithm in (Dopri5(), Tsit5())
                integrate(decay!, u0, [1.0, 0.0], algorithm; parts = [1:1], throw = false)
                out = [similar(u0)]
                sol = integrate(
                    decay!, u0, [0.0, 1.0], algorithm; out, keep_states = true, keep = sum, dense = true,
                    events = Event((u, t) -> t - 0.5)
                )
                sol(0.25)
            end
            for algorithm in (Picard(), Anderson())
                fixed_point(halve!, zeros(T, 3, 2), algorithm; samples = 2)
                fixed_point(halve!, zeros(T, 6), algorithm; throw = false)
            end
            for algorithm in (ArcLength(), ArcLength(linear_solver = :krylov), NaturalParameter())
                trace_path(halve!, zeros(T, 2), algorithm; throw = false)
            end
        end
    end
end
