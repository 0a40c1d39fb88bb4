using ForwardDiff: ForwardDiff

const STIFF = (Rodas5P, TRBDF2, FBDF)
const LINEAR_SOLVERS = (:dense, :krylov)

# u' = rate (u - cos t) - sin t with u(0) = 1 stays on cos t, whatever the rate.
const RATES = [-1.0, -1.0e3, -1.0e6]
prothero!(du, u, t) = (du .= eltype(u).(RATES) .* (u .- cos(t)) .- sin(t))
prothero_jvp!(Jv, v, u, t) = (Jv .= eltype(u).(RATES) .* v)

van_der_pol_1000!(du, u, t) = (du[1] = u[2]; du[2] = 1000 * (1 - u[1]^2) * u[2] - u[1])

function robertson!(du, u, t)
    du[1] = -0.04 * u[1] + 1.0e4 * u[2] * u[3]
    du[3] = 3.0e7 * u[2]^2
    du[2] = -du[1] - du[3]
    return nothing
end

@testset "Prothero-Robinson, $(name(A())), $linear_solver, $T, $(isnothing(jvp!) ? "differences" : "products")" for
    A in STIFF, linear_solver in LINEAR_SOLVERS, T in (Float32, Float64), jvp! in (nothing, prothero_jvp!)

    # Float32 differences of a field of size 1e6 are too rough for GMRES.
    T === Float32 && isnothing(jvp!) && linear_solver === :krylov && continue
    tolerance = T === Float32 ? 1.0e-4 : 1.0e-6
    ts = [0.0, 0.4, 1.0, 3.0]
    sol = integrate(prothero!, ones(T, 3), ts, A(rtol = tolerance, atol = tolerance; linear_solver); jvp!)
    @test sol.status === SUCCESS && sol.ts == ts && sol.us isa Vector{Vector{T}}
    for (t, u) in zip(sol.ts, sol.us)
        @test maximum(abs, u .- cos(t)) < 60 * tolerance
    end
    # An explicit method would need more than a million steps.
    @test length(sol.steps) < 600
    @test sol.stats.n_jvp > 0
end

@testset "van der Pol, mu = 1000, $(name(A()))" for A in (Rodas5P, FBDF)
    # Mazzia, Magherini (2008), Test Set for Initial Value Problem Solvers, release 2.4: VDPOL, in this scale of time.
    reference = [1.706167732170483, -0.8928097010247975e-3]
    algorithm = A(rtol = 1.0e-8, atol = 1.0e-11, linear_solver = :dense)
    sol = integrate(van_der_pol_1000!, [2.0, 0.0], [0.0, 2000.0], algorithm; jvp! = ZeroPaths.forward_jvp(van_der_pol_1000!))
    @test sol.us[end] ≈ reference rtol = 1.0e-4
end

@testset "Robertson, $(name(A())), $(given ? "products" : "differences")" for A in STIFF, given in (true, false)
    # The same source: ROBER at t = 1e11.
    reference = [0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050]
    tolerance = A === TRBDF2 ? 1.0e-5 : 1.0e-7
    jvp! = given ? ZeroPaths.forward_jvp(robertson!) : nothing
    algorithm = A(rtol = tolerance, atol = tolerance * 1.0e-10)
    sol = integrate(robertson!, [1.0, 0.0, 0.0], [0.0, 40.0, 1.0e11], algorithm; jvp!)
    @test sol.us[2] ≈ [0.7158270688, 9.185534765e-6, 0.2841637457] rtol = 1.0e-3
    @test sol.us[end][1] ≈ reference[1] rtol = 2.0e-2
    @test sol.us[end][3] ≈ reference[3] rtol = 1.0e-6
end

@testset "order of one step of $(name(A()))" for (A, order) in ((Rodas5P, 5), (TRBDF2, 2))
    # The local error: tolerances that accept everything. FBDF changes its order as it goes.
    errors = map((0.4, 0.2, 0.1)) do h
        algorithm = A(rtol = 1.0e3, atol = 1.0e3, first_step = h, linear_solver = :dense)
        sol = integrate(forced.f!, [2.0], [0.0, h], algorithm; jvp! = (Jv, v, u, t) -> (Jv .= -v))
        @test length(sol.steps) == 1
        abs(sol.us[end][1] - forced.exact(h)[1])
    end
    slopes = -diff(log2.(collect(errors)))
    @test all(slope -> abs(slope - (order + 1)) < 0.35, slopes)
end

@testset "tolerances are met, $(name(A()))" for A in STIFF
    errors = map((1.0e-4, 1.0e-6, 1.0e-8)) do tolerance
        sol = integrate(
            linear.f!, linear.u0, [0.0, 2.0], A(rtol = tolerance, atol = tolerance, max_steps = 100_000);
            jvp! = (Jv, v, u, t) -> linear.f!(Jv, v, t)
        )
        relative_error(sol.us[end], linear.exact(2.0)) / tolerance
    end
    # The many small steps of order 2 add up: their number grows with the cube root of the tolerance.
    @test all(<(A === TRBDF2 ? 1000 : 30), errors)
end

@testset "$(problem.name), $(name(A())), $linear_solver, $direction" for problem in PROBLEMS,
        A in STIFF, linear_solver in LINEAR_SOLVERS, direction in (:forward, :backward)

    ts = direction === :forward ? [0.0, 0.3, 0.35, 1.1, 2.0] : [2.0, 1.1, 0.35, 0.3, 0.0]
    u0 = problem.exact(ts[1])
    sol = integrate(problem.f!, u0, ts, A(rtol = 1.0e-6, atol = 1.0e-6; linear_solver))
    for (t, u) in zip(sol.ts, sol.us)
        @test relative_error(u, problem.exact(t)) < (A === TRBDF2 ? 5.0e-4 : 2.0e-4)
    end
end

@testset "dense and Krylov agree, $(name(A()))" for A in STIFF
    options = (; rtol = 1.0e-7, atol = 1.0e-7)
    jvp! = ZeroPaths.forward_jvp(robertson!)
    sols = map(LINEAR_SOLVERS) do linear_solver
        integrate(robertson!, [1.0, 0.0, 0.0], [0.0, 10.0], A(; options..., linear_solver); jvp!)
    end
    @test sols[1].us[end] ≈ sols[2].us[end] rtol = 1.0e-5
end

@testset "heat, 200 elements, $(name(A()))" for A in STIFF
    n = 200
    exact(t) = exp(heat_rate(n, 1) * t) * heat_mode(n, 1) + 0.3 * exp(heat_rate(n, 5) * t) * heat_mode(n, 5)
    sol = integrate(heat!, exact(0.0), [0.0, 0.03, 0.1], A(rtol = 1.0e-5, atol = 1.0e-7); jvp! = heat_jvp!)
    @test relative_error(sol.us[2], exact(0.03)) < 1.0e-3 && relative_error(sol.us[3], exact(0.1)) < 1.0e-3
    # Stiffness 1.6e5: Dopri5 could not take steps larger than 2e-5.
    @test length(sol.steps) < 500
    # Column by column would be 200 products a Jacobian.
    dense = integrate(heat!, exact(0.0), [0.0, 0.03, 0.1], A(rtol = 1.0e-5, atol = 1.0e-7, linear_solver = :dense); jvp! = heat_jvp!)
    @test dense.us[3] ≈ sol.us[3] rtol = 1.0e-3
    @test dense.stats.n_jvp % n == 0
end

@testset "statistics and steps, $(name(A())), $linear_solver" for A in STIFF, linear_solver in LINEAR_SOLVERS
    calls, products = Ref(0), Ref(0)
    counted!(du, u, t) = (calls[] += 1; logistic.f!(du, u, t))
    counted_jvp!(Jv, v, u, t) = (products[] += 1; Jv .= (1 .- 2 .* u) .* v)
    algorithm = A(; linear_solver)
    sol = integrate(counted!, logistic.u0, [0.0, 1.0, 4.0], algorithm; jvp! = counted_jvp!, keep_states = true)
    @test sol.stats.nfe == calls[] && sol.stats.n_jvp == products[] > 0
    @test length(sol.states) == length(sol.steps) == sol.stats.n_accepted
    @test sol.states[1] == logistic.u0
    @test sol.steps.save_fractions[end] === 1.0
    @test sol.steps.starts[end] + sol.steps.sizes[end] ≈ 4.0
    products[] = 0
    differences = integrate(counted!, logistic.u0, [0.0, 1.0, 4.0], algorithm)
    @test products[] == 0 && differences.stats.n_jvp > 0 && differences.stats.nfe > sol.stats.nfe
    @test differences.us[end] ≈ sol.us[end] rtol = 1.0e-3
end

@testset "a state of two dimensions, $(name(A())), $linear_solver" for A in STIFF, linear_solver in LINEAR_SOLVERS
    u0 = [0.1 0.5 0.9; 1.1 0.3 0.7]
    before = copy(u0)
    shapes = Set()
    jvp!(Jv, v, u, t) = (push!(shapes, (typeof(Jv), typeof(v), typeof(u))); Jv .= (1 .- 2 .* u) .* v)
    f!(du, u, t) = (push!(shapes, (typeof(du), typeof(u), typeof(u))); du .= u .* (1 .- u))
    sol = integrate(f!, u0, [0.0, 1.0], A(rtol = 1.0e-6, atol = 1.0e-6; linear_solver); jvp!)
    @test sol.us[end] ≈ 1 ./ (1 .+ (1 ./ u0 .- 1) .* exp(-1)) rtol = 1.0e-4
    @test u0 == before
    @test shapes == Set([(Matrix{Float64}, Matrix{Float64}, Matrix{Float64})])
end

@testset "how a stiff solve fails, $(name(A()))" for A in STIFF
    sol = failed(van_der_pol_1000!, [2.0, 0.0], [0.0, 2000.0], A(max_steps = 20))
    @test sol.status === MAX_STEPS && sol.stats.n_accepted + sol.stats.n_rejected == 20
    @test failed(squared!, [1.0], [0.0, 0.5, 2.0], A()).status in (STEP_TOO_SMALL, DIVERGED)
    from_half!(du, u, t) = (du .= t > 0.5 ? NaN : 1.0)
    sol = failed(from_half!, [0.0], [0.0, 1.0], A())
    @test sol.status === DIVERGED && sol.ts[end] ≈ 0.5 && sol.us[end] ≈ [0.5]
    @test failed(decay!, [1.0, NaN], [0.0, 1.0], A()).status === DIVERGED
    broken_jvp!(Jv, v, u, t) = throw(FieldError())
    @test_throws FieldError integrate(decay!, [1.0], [0.0, 1.0], A(); jvp! = broken_jvp!)
    broken!(du, u, t) = t > 0.5 ? throw(FieldError()) : (du .= -u)
    @test_throws FieldError integrate(broken!, [1.0], [0.0, 1.0], A())
    nan_jvp!(Jv, v, u, t) = (Jv .= NaN)
    @test failed(decay!, [1.0], [0.0, 1.0], A(linear_solver = :dense); jvp! = nan_jvp!).status === DIVERGED
end

@testset "arguments of stiff methods" begin
    @test_throws "reltol must be" FBDF(rtol = -1)
end

@testset "JLArray, $(name(A())), Krylov, $T" for A in STIFF, T in (Float32, Float64)
    u0 = T[0.1 0.5 0.9; 1.1 0.3 0.7]
    f!(du, u, t) = (du .= u .* (1 .- u) .* 20 .+ cos(t))
    jvp!(Jv, v, u, t) = (Jv .= 20 .* (1 .- 2 .* u) .* v)
    for products in (jvp!, nothing)
        algorithm = A(rtol = 1.0e-4, atol = 1.0e-4, linear_solver = :krylov)
        host = integrate(f!, u0, [0.0, 0.55, 1.0], algorithm; jvp! = products)
        device = integrate(f!, JLArray(u0), [0.0, 0.55, 1.0], algorithm; jvp! = products)
        @test device.us isa Vector{<:JLArray{T, 2}}
        @test Array(device.us[2]) ≈ host.us[2] rtol = 1.0e-2
        @test Array(device.us[3]) ≈ host.us[3] rtol = 1.0e-2
    end
end

@testset "a singular mass matrix" begin
    # Robertson's problem with its conservation law in place of the third equation.
    dae!(du, u, t) = (robertson!(du, u, t); du[3] = u[1] + u[2] + u[3] - 1)
    mass_matrix = [1.0 0 0; 0 1 0; 0 0 0]
    sol = integrate(dae!, [1.0, 0.0, 0.0], [0.0, 40.0], Rodas5P(; rtol = 1.0e-8, atol = 1.0e-12, mass_matrix))
    @test sol.us[end] ≈ [0.7158270688, 9.185534765e-6, 0.2841637457] rtol = 1.0e-6
end

@testset "AutoSwitch" begin
    for T in (Float32, Float64)
        calm = integrate((du, u, t) -> du .= -u, T[1, 2], [0.0, 0.5, 1.0], AutoSwitch(rtol = 1.0e-5, atol = 1.0e-5))
        @test calm.us[end] ≈ exp(-1) * [1, 2] rtol = 1.0e-4
        @test calm.stats.n_jvp == 0 # explicit all the way
    end
    for linear_solver in LINEAR_SOLVERS
        algorithm = AutoSwitch(rtol = 1.0e-6, atol = 1.0e-8; linear_solver)
        stiff = integrate(van_der_pol_1000!, [2.0, 0.0], [0.0, 2000.0], algorithm)
        @test stiff.us[end] ≈ [1.706167732170483, -0.8928097010247975e-3] rtol = 1.0e-3
        # An explicit method alone would need more than a million steps.
        @test stiff.stats.n_jvp > 0 && length(stiff.steps) < 10_000
    end
end

@testset "order of ROS3P in equal steps, the field by time" begin
    method = OrdinaryDiffEqRosenbrock.ROS3P(autodiff = ZeroPaths.ADTypes.AutoFiniteDiff())
    errors = map((20, 40, 80)) do n
        request = ZeroPaths.Request(step_size = 3 / n)
        record = ZeroPaths.record((du, u, t) -> (du .= cos(t) .* u), [1.0], [0.3, 3.3], method, request)
        abs(record.us[end][1] / exp(sin(3.3) - sin(0.3)) - 1)
    end
    @test all(>(2.7), -diff(log2.(collect(errors))))
end
