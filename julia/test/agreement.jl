# The accepted steps of homojl's PyTorch backend, stored by golden/make_steps.py.

using TOML: TOML

van_der_pol!(du, u, t) = (du[1] = u[2]; du[2] = 5 * (1 - u[1] * u[1]) * u[2] - u[1])

const STORED = TOML.parsefile(joinpath(@__DIR__, "golden", "steps.toml"))

@testset "$name" for (name, stored) in STORED
    A = Dict("Bosh3" => Bosh3, "Dopri5" => Dopri5, "Tsit5" => Tsit5)[stored["algorithm"]]
    parts = isempty(stored["parts"]) ? nothing : [first:last for (first, last) in stored["parts"]]
    tolerance = stored["tolerance"]
    beta1, beta2, beta3 = stored["exponents"]
    algorithm = A(rtol = tolerance, atol = tolerance, controller = TorchController(; beta1, beta2, beta3))
    sol = integrate(van_der_pol!, [2.0, 0.0], stored["ts"], algorithm; parts)
    @test length(sol.steps) == length(stored["sizes"])
    @test sol.stats.n_rejected == stored["n_rejected"]
    @test sol.stats.nfe == stored["nfe"]
    @test sol.steps.sizes ≈ stored["sizes"] rtol = 1.0e-7
    @test sol.steps.save_steps == stored["save_steps"]
    @test sol.steps.save_fractions ≈ stored["save_fractions"] rtol = 1.0e-7
    @test sol.us[end] ≈ stored["last_state"] rtol = 1.0e-9
end
