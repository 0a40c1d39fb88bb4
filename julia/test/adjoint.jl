# Gradients of solves by the adjoint equation, against exact ones.

const LEGENDRE = ([-sqrt(3 / 5), 0.0, sqrt(3 / 5)], [5 / 9, 8 / 9, 5 / 9])

# u' = -k u^2 + c t: with c = 0 the solution is u0 / (1 + k t u0).
quadratic!(du, u, p, t) = (du .= .-p[1] .* u .^ 2 .+ p[2] .* t)

function quadratic_field(p, T)
    f!(du, u, t) = quadratic!(du, u, p, t)
    function vjp!(gradient, gains, a, u, t)
        gradient .= .-2 .* p[1] .* u .* a
        isempty(gains) || (gains[1] .= .-sum(u .^ 2 .* a); gains[2] .= sum(a) .* t)
        return nothing
    end
    return (; f!, jvp! = (Jv, v, u, t) -> (Jv .= .-2 .* p[1] .* u .* v), vjp!)
end

way(how::How) = ZeroPaths.Way(how.make(true), how.request, true)

function gradients(p, u0, ts, how, rule; parts = nothing, T = Float64, backward = how)
    field = quadratic_field(p, T)
    us = integrate(field.f!, u0, ts, how; field.jvp!).us
    costate, totals = zero(u0), (zeros(T, 1), zeros(T, 1))
    ending, t, nfe, products = ZeroPaths.adjoint!(
        costate, totals, field, ts, us, [nothing; 2 .* us[2:end]], way(how), way(backward), rule, parts
    )
    return (; ending, t, nfe, products, costate, totals)
end

const ADJOINT_CASES = [
    (A, rule, T) for A in (Tsit5, Vern7, Rodas5P, TRBDF2, FBDF, AutoSwitch) for rule in (LEGENDRE, nothing) for T in (Float64, Float32)
]

@testset "$(name(A())), $(isnothing(rule) ? "backsolve" : "gauss"), $T" for (A, rule, T) in ADJOINT_CASES
    tolerance = T === Float32 ? 1.0e-5 : A === TRBDF2 ? 1.0e-7 : 1.0e-9
    how, k, u0, ts = A(rtol = tolerance, atol = tolerance), T(1.5), T[0.8, 2.0], [0.0, 0.4, 1.0]
    found = gradients((k, zero(T)), u0, ts, how, rule; T)
    @test found.ending === :success && found.products > 0
    # Of the sum of squares of u0 / (1 + k t u0) at the two times.
    us = [u0 ./ (1 .+ k .* t .* u0) for t in ts[2:end]]
    by_start = sum(2 .* u ./ (1 .+ k .* t .* u0) .^ 2 for (t, u) in zip(ts[2:end], us))
    by_rate = -sum(sum(2 .* u .* t .* u .^ 2) for (t, u) in zip(ts[2:end], us))
    accuracy = 2.0e3 * tolerance
    @test found.costate ≈ by_start rtol = accuracy
    @test found.totals[1][1] ≈ by_rate rtol = accuracy
end

@testset "backwards in time, and a parameter that acts with time" for rule in (LEGENDRE, nothing), ts in ([0.0, 1.0], [1.0, 0.3, 0.0])
    how, u0 = Tsit5(rtol = 1.0e-10, atol = 1.0e-10), [0.5, 0.7]
    p = [0.6, 0.3]
    found = gradients(p, u0, ts, how, rule)
    loss(p, u0) = sum(u -> sum(abs2, u), integrate((du, u, t) -> quadratic!(du, u, p, t), u0, ts, how).us[2:end])
    difference(f, x) = map(eachindex(x)) do i
        step = 1.0e-5 .* (eachindex(x) .== i)
        (f(x .+ step) - f(x .- step)) / 2.0e-5
    end
    @test found.costate ≈ difference(u -> loss(p, u), u0) rtol = 1.0e-6
    @test [found.totals[1][1], found.totals[2][1]] ≈ difference(q -> loss(q, u0), p) rtol = 1.0e-6
end

@testset "diffusion, which cannot be integrated backwards" begin
    n = 30
    field = (; f! = heat!, jvp! = heat_jvp!, vjp! = (gradient, gains, a, u, t) -> heat!(gradient, a, t))
    for A in (Tsit5, Rodas5P, FBDF), linear_solver in (:dense, :krylov)
        A === Tsit5 && linear_solver === :krylov && continue
        how = A === Tsit5 ? A(rtol = 1.0e-8, atol = 1.0e-8) : A(; rtol = 1.0e-8, atol = 1.0e-8, linear_solver)
        dense = linear_solver === :dense
        at = ZeroPaths.Way(how.make(dense), how.request, dense)
        us = integrate(heat!, heat_mode(n, 1), [0.0, 0.1], how; jvp! = heat_jvp!).us
        costate = zeros(n)
        ending, _ = ZeroPaths.adjoint!(costate, (), field, [0.0, 0.1], us, [nothing, heat_mode(n, 2)], at, at, LEGENDRE, nothing)
        @test ending === :success
        @test costate ≈ exp(0.1 * heat_rate(n, 2)) .* heat_mode(n, 2) rtol = 1.0e-5
    end
end

@testset "what fails says where" begin
    hard = Tsit5(rtol = 1.0e-9, atol = 1.0e-9, max_steps = 3)
    found = gradients((1.5, 0.0), [0.8, 2.0], [0.0, 1.0], Tsit5(rtol = 1.0e-9, atol = 1.0e-9), LEGENDRE; backward = hard)
    @test found.ending === :max_steps && 0 < found.t < 1
    nothing_to_do = ZeroPaths.adjoint!(
        zeros(2), (), quadratic_field((1.5, 0.0), Float64), [0.0, 1.0], [[1.0, 1.0], [1.0, 1.0]], [nothing, nothing],
        way(hard), way(hard), LEGENDRE, nothing,
    )
    @test nothing_to_do == (:success, 0.0, 0, 0)
end
