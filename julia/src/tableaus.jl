# Explicit Runge-Kutta methods as data, for what takes single steps of its own: the predictors of path tracking.

"""
    Tableau(order, a, b, b_error)

Coefficients of an explicit Runge-Kutta method with `s` stages: rows `a` of weights of the earlier stages, `b` of the
solution and `b_error` of the error estimate, solution minus embedded solution, or `nothing`. What it is for does not
depend on time.
"""
struct Tableau
    order::Int
    a::Vector{Vector{Float64}}
    b::Vector{Float64}
    b_error::Union{Nothing, Vector{Float64}}
end

"First same as last: the last stage is the derivative at the end of the step."
first_same_as_last(t::Tableau) = length(t.b) > 1 && iszero(t.b[end]) && t.a[end] == t.b[1:(end - 1)]

"""
    tableau(algorithm) -> Tableau

The coefficients of `Euler`, `Midpoint`, `RK4`, `Bosh3`, `Dopri5` or `Tsit5`; those of another method are an
`ArgumentError`.

References: Bogacki, Shampine (1989); Dormand, Prince (1980); Tsitouras (2011).
"""
tableau(::Euler) = Tableau(1, [[]], [1], nothing)
tableau(::Midpoint) = Tableau(2, [[], [1 / 2]], [0, 1], nothing)
tableau(::RK4) = Tableau(4, [[], [1 / 2], [0, 1 / 2], [0, 0, 1]], [1 / 6, 1 / 3, 1 / 3, 1 / 6], nothing)
tableau(::Bosh3) = Tableau(
    3, [[], [1 / 2], [0, 3 / 4], [2 / 9, 1 / 3, 4 / 9]], [2 / 9, 1 / 3, 4 / 9, 0],
    [2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8],
)
tableau(::Dopri5) = Tableau(
    5,
    [
        [], [1 / 5], [3 / 40, 9 / 40], [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40],
)
tableau(::Tsit5) = Tableau(
    5,
    [
        [], [0.161], [-0.008480655492356989, 0.335480655492357],
        [2.8971530571054935, -6.359448489975075, 4.3622954328695815],
        [5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525],
        [5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383],
        [
            0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
            2.324710524099774,
        ],
    ],
    [
        0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774, 0,
    ],
    [
        0.0017800110522257773, 0.0008164344596567463, -0.007880878010261994, 0.1447110071732629, -0.5823571654525552,
        0.45808210592918686, -1 / 66,
    ],
)
tableau(algorithm::AbstractODEAlgorithm) = throw(
    ArgumentError("predictor must be Euler, Midpoint, RK4, Bosh3, Dopri5 or Tsit5, got $(name(algorithm))")
)

"y + h sum_j weights[j] ks[j], leaving out zero weights."
function combine(y::A, h::Float64, weights::Vector{Float64}, ks::Vector{A}) where {T, A <: AbstractVector{T}}
    out = copy(y)
    for (weight, k) in zip(weights, ks)
        iszero(weight) || (out .+= T(h * weight) .* k)
    end
    return out
end

"""
    runge_kutta_step(field, tableau, h, y, k_first) -> y_next, ks

One step of size `h` of dy/ds = field(y) from `y`, where `k_first` is the derivative; the last stage of a method whose
first stage is the last step's is evaluated too.
"""
function runge_kutta_step(field, tableau::Tableau, h::Float64, y::A, k_first::A) where {A}
    ks = A[k_first]
    fsal = first_same_as_last(tableau)
    for i in 2:(length(tableau.b) - fsal)
        push!(ks, field(combine(y, h, tableau.a[i], ks)))
    end
    y_next = combine(y, h, tableau.b, ks)
    fsal && push!(ks, field(y_next))
    return y_next, ks
end
