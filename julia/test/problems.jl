# Problems with exact answers, each a field, an initial state, and the exact state at any time.

struct ExactProblem{F, S}
    name::String
    f!::F
    u0::Vector{Float64}
    exact::S
end

const MATRIX = [-0.5 1.0 0.0; -1.0 -0.5 0.3; 0.1 0.0 -1.0]

linear = ExactProblem(
    "linear", (du, u, t) -> mul!(du, eltype(u).(MATRIX), u), [1.0, -2.0, 0.5], t -> exp(t * MATRIX) * [1.0, -2.0, 0.5]
)

rotation = ExactProblem(
    "rotation", (du, u, t) -> (du[1] = u[2]; du[2] = -u[1]), [1.0, 0.5],
    t -> [cos(t) + 0.5 * sin(t), 0.5 * cos(t) - sin(t)]
)

logistic = ExactProblem(
    "logistic", (du, u, t) -> (du .= u .* (1 .- u)), [0.1, 0.5, 1.7], t -> [1 / (1 + (1 / u - 1) * exp(-t)) for u in (0.1, 0.5, 1.7)]
)

# u' = -u + cos t with u(0) = 2
forced = ExactProblem("forced", (du, u, t) -> (du .= cos(t) .- u), [2.0], t -> [(cos(t) + sin(t)) / 2 + 1.5 * exp(-t)])

const PROBLEMS = (linear, rotation, logistic, forced)

relative_error(u, exact) = norm(u - exact) / norm(exact)

# Heat on a rod: the second difference of n values between two zeros. Its eigenvectors are sines.
function heat!(du, u, t)
    n = length(u)
    for i in 1:n
        left, right = i == 1 ? zero(t) : u[i - 1], i == n ? zero(t) : u[i + 1]
        du[i] = (n + 1)^2 * (left - 2 * u[i] + right)
    end
    return nothing
end

heat_jvp!(Jv, v, u, t) = heat!(Jv, v, t)

heat_mode(n, k) = [sinpi(k * i / (n + 1)) for i in 1:n]
heat_rate(n, k) = -4 * (n + 1)^2 * sinpi(k / (2 * (n + 1)))^2
