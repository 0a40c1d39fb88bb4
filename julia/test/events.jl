first_element(u, t) = sum(view(u, 1:1))

# The first element of the rotation from (1, 0.5) is cos t + 0.5 sin t, zero at t = pi - atan(2).
const CROSSING = π - atan(2)

@testset "a terminal event, $(name(algorithm))" for (algorithm, tolerance) in (
        (Vern7(rtol = 1.0e-12, atol = 1.0e-12), 1.0e-10),
        (Tsit5(rtol = 1.0e-12, atol = 1.0e-12), 1.0e-10),
        (Dopri5(rtol = 1.0e-12, atol = 1.0e-12), 1.0e-10),
        (Bosh3(rtol = 1.0e-11, atol = 1.0e-11, max_steps = 1_000_000), 1.0e-9),
        (Rodas5P(rtol = 1.0e-12, atol = 1.0e-12), 1.0e-9),
        (TRBDF2(rtol = 1.0e-8, atol = 1.0e-8, max_steps = 100_000), 1.0e-5),
        (FBDF(rtol = 1.0e-10, atol = 1.0e-10), 1.0e-7),
        (RK4(step_size = 1.0e-3), 1.0e-10),
        (Midpoint(step_size = 1.0e-3), 1.0e-5),
        (Euler(step_size = 1.0e-4), 1.0e-3),
    )
    jvp!(Jv, v, u, t) = rotation.f!(Jv, v, t)
    ts = [0.0, 0.5, 1.0, 3.0, 4.0]
    event = Event(first_element)
    sol = integrate(rotation.f!, rotation.u0, ts, algorithm; jvp!, events = event)
    @test sol.status === ENDED
    @test sol.ts[1:3] == ts[1:3] && length(sol.ts) == length(sol.us) == 4
    @test sol.ts[end] ≈ CROSSING atol = tolerance
    @test abs(sol.us[end][1]) < tolerance
    @test sol.event == 1
    # The steps are those of a solve without the event, as far as they go.
    whole = integrate(rotation.f!, rotation.u0, ts, algorithm; jvp!)
    n = length(sol.steps)
    @test sol.steps.starts == whole.steps.starts[1:n] && sol.steps.sizes ≈ whole.steps.sizes[1:n]
    @test sol.steps.starts[n] + sol.steps.save_fractions[end] * sol.steps.sizes[n] ≈ sol.ts[end] rtol = 1.0e-14
    @test sol.us[1:3] ≈ whole.us[1:3]
end

@testset "directions and several conditions, $direction" for direction in (:forward, :backward)
    ts = direction === :forward ? [0.0, 10.0] : [10.0, 0.0]
    u0 = rotation.exact(ts[1])
    crossings = CROSSING .+ (0:2) .* π
    # Forwards the element falls, rises and falls; backwards, what rose falls.
    first_fall, first_rise = direction === :forward ? (crossings[1], crossings[2]) : (crossings[2], crossings[3])
    for (way, expected) in ((-1, first_fall), (1, first_rise))
        sol = integrate(
            rotation.f!, u0, ts, Vern7(rtol = 1.0e-12, atol = 1.0e-12); events = Event(first_element; direction = way)
        )
        @test sol.ts[end] ≈ expected atol = 1.0e-10
    end
    several = [Event(first_element), Event((u, t) -> t - 2.5), Event((u, t) -> t - 2.4)]
    sol = integrate(rotation.f!, u0, ts, Vern7(rtol = 1.0e-12, atol = 1.0e-12); events = several)
    @test sol.event == 1
    @test sol.ts[end] ≈ (direction === :forward ? crossings[1] : crossings[3]) atol = 1.0e-10
end

@testset "zero at the start is no event, zero at the end of a step is" begin
    quiet = integrate(decay!, [1.0], [0.0, 1.0], Tsit5(); events = Event((u, t) -> t))
    @test isnothing(quiet.event) && quiet.ts == [0.0, 1.0]
    at_end = integrate(decay!, [1.0], [0.0, 0.5, 1.0], RK4(step_size = 0.25); events = Event((u, t) -> t - 0.75))
    @test at_end.ts == [0.0, 0.5, 0.75] && at_end.steps.save_fractions[end] === 1.0
    at_save = integrate(decay!, [1.0], [0.0, 0.5, 1.0], RK4(step_size = 0.25); events = Event((u, t) -> t - 0.5))
    @test at_save.ts == [0.0, 0.5] && length(at_save.us) == 2
end

@testset "an event in Float32, on a JLArray" begin
    fall!(du, u, t) = (du .= -2 .* t)
    for u0 in (Float32[1, 2], JLArray(Float32[1, 2]))
        sol = integrate(fall!, u0, [0.0, 3.0], Tsit5(); events = Event((u, t) -> sum(u)))
        @test sol.ts[end] ≈ sqrt(1.5) rtol = 1.0e-6
        @test typeof(sol.us[end]) == typeof(u0)
    end
end

@testset "an exception in a condition is kept" begin
    @test_throws FieldError integrate(decay!, [1.0], [0.0, 1.0], Tsit5(); events = Event((u, t) -> throw(FieldError())))
end

@testset "a condition that is no number ends the solve before it" begin
    sol = integrate(decay!, [1.0], [0.0, 1.0], Tsit5(); events = Event((u, t) -> t > 0.5 ? NaN : -1.0))
    @test sol.status === DIVERGED && sol.event === 0 && sol.ts[end] <= 0.5
end
