# A step of Bogacki and Shampine's method, and its cubic Hermite interpolant, by hand.
function bosh3_step(f, t, h, u)
    k1 = f(u, t)
    k2 = f(u + h / 2 * k1, t + h / 2)
    k3 = f(u + 3h / 4 * k2, t + 3h / 4)
    u_next = u + h * (2k1 + 3k2 + 4k3) / 9
    return u_next, k1, f(u_next, t + h)
end

function hermite(u, u_next, k1, k4, h, x)
    return (1 + 2x) * (1 - x)^2 * u + x^2 * (3 - 2x) * u_next + x * (1 - x)^2 * h * k1 + x^2 * (x - 1) * h * k4
end

function rk4_step(f, t, h, u)
    k1 = f(u, t)
    k2 = f(u + h / 2 * k1, t + h / 2)
    k3 = f(u + h / 2 * k2, t + h / 2)
    k4 = f(u + h * k3, t + h)
    return u + h * (k1 + 2k2 + 2k3 + k4) / 6
end

out_of_place(f!) = (u, t) -> (du = similar(u); f!(du, u, t); du)

@testset "replay by hand, $ts" for ts in ([0.0, 0.2, 0.21, 1.0, 3.0], [3.0, 1.0, 0.5, 0.0])
    f = out_of_place(forced.f!)
    sol = integrate(forced.f!, [2.0], ts, Bosh3(); keep_states = true)
    steps = sol.steps
    @test length(steps) == length(steps.sizes) == length(sol.states) == sol.stats.n_accepted
    u = [2.0]
    for i in 1:length(steps)
        @test sol.states[i] ≈ u rtol = 1.0e-12
        u_next, k1, k4 = bosh3_step(f, steps.starts[i], steps.sizes[i], u)
        for j in findall(==(i), steps.save_steps)
            saved = hermite(u, u_next, k1, k4, steps.sizes[i], steps.save_fractions[j])
            @test sol.us[j + 1] ≈ saved rtol = 1.0e-12
            @test steps.starts[i] + steps.save_fractions[j] * steps.sizes[i] ≈ ts[j + 1]
        end
        u = u_next
    end
    @test steps.save_fractions[end] === 1.0
    @test all(x -> 0 < x <= 1, steps.save_fractions)
    @test issorted(steps.save_steps) && steps.save_steps[end] == length(steps)
    @test steps.starts[1] == ts[1] && steps.starts[end] + steps.sizes[end] == ts[end]
end

@testset "equal steps that end on the save times" begin
    ts = [0.0, 0.3, 1.0]
    sol = integrate(forced.f!, [2.0], ts, RK4(step_size = 0.1); keep_states = true)
    @test length(sol.steps) == 10
    @test sol.steps.save_steps == [3, 10] && sol.steps.save_fractions == [1.0, 1.0]
    @test all(≈(0.1), sol.steps.sizes)
    u = [2.0]
    for i in 1:10
        @test sol.states[i] ≈ u rtol = 1.0e-13
        u = rk4_step(out_of_place(forced.f!), sol.steps.starts[i], sol.steps.sizes[i], u)
    end
    @test sol.us[end] ≈ u rtol = 1.0e-13
    @test length(integrate(forced.f!, [2.0], ts, RK4()).steps) == 2
    @test length(integrate(forced.f!, [2.0], [1.0, 0.0], Euler(step_size = 0.3)).steps) == 4
end

@testset "many equal steps do not drift" begin
    sol = integrate(forced.f!, [2.0], [0.0, 1.0, 100.0], Euler(step_size = 1.0e-3))
    @test length(sol.steps) == 100_000
    @test sol.steps.save_steps == [1000, 100_000]
end

@testset "save times cost no steps, $(name(algorithm))" for algorithm in (Bosh3(), Dopri5(), Tsit5(), Vern7())
    few = integrate(logistic.f!, logistic.u0, [0.0, 4.0], algorithm)
    many = integrate(logistic.f!, logistic.u0, range(0, 4; length = 101), algorithm)
    @test many.steps.starts == few.steps.starts && many.steps.sizes == few.steps.sizes
    @test many.us[end] == few.us[end]
    name(algorithm) == "Vern7" || @test many.stats.nfe == few.stats.nfe
end

@testset "statistics" begin
    calls = Ref(0)
    counted!(du, u, t) = (calls[] += 1; rotation.f!(du, u, t))
    sol = integrate(counted!, rotation.u0, [0.0, 10.0], Dopri5())
    @test sol.stats.nfe == calls[]
    # Two at the start, one of them for the first step's size, then six an attempt.
    @test sol.stats.nfe == 2 + 6 * (sol.stats.n_accepted + sol.stats.n_rejected)
    given = integrate(counted!, rotation.u0, [0.0, 10.0], Dopri5(first_step = 5.0))
    @test given.stats.n_rejected > 0
    @test given.stats.nfe == 1 + 6 * (given.stats.n_accepted + given.stats.n_rejected)
    @test integrate(counted!, rotation.u0, [0.0, 1.0], RK4(step_size = 0.1)).stats.nfe == 41
    @test isempty(sol.states)
end

@testset "one step past everything" begin
    # The first step is also the last, and longer than the whole solve.
    sol = integrate(forced.f!, [2.0], [0.0, 0.05, 0.1], Tsit5(first_step = 1.0))
    @test sol.steps.sizes == [0.1] && sol.steps.save_fractions == [0.5, 1.0]
    @test sol.us[2] ≈ forced.exact(0.05) rtol = 1.0e-6
    @test sol.us[3] ≈ forced.exact(0.1) rtol = 1.0e-6
end

@testset "parts" begin
    # The second element needs far smaller steps than the first.
    f!(du, u, t) = (du[1] = -u[1]; du[2] = 100 * cos(100 * t))
    whole = integrate(f!, [1.0, 0.0], [0.0, 1.0], Tsit5())
    first_only = integrate(f!, [1.0, 0.0], [0.0, 1.0], Tsit5(); parts = [1:1])
    alone = integrate((du, u, t) -> (du .= -u), [1.0], [0.0, 1.0], Tsit5())
    each = integrate(f!, [1.0, 0.0], [0.0, 1.0], Tsit5(); parts = [1:1, 2:2])
    @test first_only.steps.sizes ≈ alone.steps.sizes
    @test length(first_only.steps) < length(whole.steps) <= length(each.steps)
    @test integrate(f!, [1.0, 0.0], [0.0, 1.0], Tsit5(); parts = [1:2]).steps.sizes == whole.steps.sizes
end
