# Algorithms by their names.

"""
An algorithm of an installed package, by its name and its arguments; made for a state of a kind when it is asked for.

# Fields
- `maker`: what makes it, a type or a function.
- `arguments`, `options`: of `maker`; among their values may be others like this.
- `plain`: whether nothing is to be added to the options, as to those of a linear solver.
- `made`: what has been made, for dense linear systems and for others.
"""
struct Chosen
    maker::Any
    arguments::Vector{Any}
    options::Vector{Pair{Symbol, Any}}
    plain::Bool
    made::Dict{Bool, Any}
end

"The module of a package that the active environment has, loaded; `nothing` if it has none. `id` is its UUID, or empty."
function load(package::String, id::String)
    for (known, loaded) in Base.loaded_modules
        known.name == package && return loaded
    end
    found = isempty(id) ? Base.identify_package(package) : Base.PkgId(Base.UUID(id), package)
    isnothing(found) || isnothing(Base.locate_package(found)) ? nothing : Base.require(found)
end

"The value called `name` in a module, or in any that is loaded and exports it where the module is `nothing`; or `nothing`."
function lookup(home, name::String)
    symbol = Symbol(name)
    isnothing(home) || return isdefined(home, symbol) ? getfield(home, symbol) : nothing
    for loaded in values(Base.loaded_modules)
        loaded === Base || loaded === Core || !Base.isexported(loaded, symbol) || !isdefined(loaded, symbol) || return getfield(loaded, symbol)
    end
    return nothing
end

"What an algorithm, or a part of one, is made by: `job.arguments` are values, `job.options` pairs of a name and a value."
chosen(maker, job::Py) =
    Chosen(maker, Any[value_of(x) for x in job.arguments], options_of(job.options), pyis(job.plain, pybuiltins.True), Dict())

"""
    made(choice, dense::Bool)

The algorithm. Where it takes a linear solver and none was chosen, it gets an LU factorisation, or GMRES; its derivatives are
ZeroPaths' own, and finite differences keep the package from preparing automatic differentiation of the field.
"""
function made(choice::Chosen, dense::Bool)
    return get!(choice.made, dense) do
        arguments = [made(x, dense) for x in choice.arguments]
        options = Pair{Symbol, Any}[name => made(x, dense) for (name, x) in choice.options]
        more = choice.plain ? [Pair{Symbol, Any}[]] : additions(choice.maker, options, dense)
        make(choice.maker, arguments, with_finite_differences(options), more)
    end
end

made(x, dense::Bool) = x

finite_differences() = ZeroPaths.ADTypes.AutoFiniteDiff()

"`autodiff = false` means finite differences, as in SciML's older versions; `true` is the default."
with_finite_differences(options) = Pair{Symbol, Any}[
    name => name === :autodiff && value isa Bool ? finite_differences() : value for (name, value) in options
]

"What may be added to an algorithm's options, the most that it takes first."
function additions(maker, options, dense::Bool)
    # Explicit methods, which are types, take none of it.
    maker isa Type && isdisjoint(fieldnames(Base.unwrap_unionall(maker)), (:autodiff, :linsolve)) && return [[]]
    differences = Pair{Symbol, Any}[:autodiff => finite_differences()]
    products = Pair{Symbol, Any}[:jvp_autodiff => finite_differences(), :vjp_autodiff => finite_differences()]
    sets = [[differences; products], differences, Pair{Symbol, Any}[]]
    linear = get(Dict(id.name => m for (id, m) in Base.loaded_modules), "LinearSolve", nothing)
    if !isnothing(linear)
        linsolve = dense ? linear.LUFactorization() : linear.KrylovJL_GMRES()
        pushfirst!(sets, [differences; Pair{Symbol, Any}(:linsolve, linsolve)])
    end
    return [filter(pair -> !(first(pair) in first.(options)), set) for set in sets]
end

function make(maker, arguments, options, additions)
    for (i, more) in enumerate(additions)
        try
            return maker(arguments...; options..., more...)
        catch e
            e isa Union{MethodError, ArgumentError} || rethrow()
            i < length(additions) && continue
            e isa MethodError ? throw(ArgumentError("$(nameof(maker)) does not take these arguments: $(message_of(e))")) : rethrow()
        end
    end
    return
end

"The request of a solve, from `job.options`; a controller's numbers stand in `job.controller`, or `None`."
function request(job::Py)
    given = Dict{Symbol, Any}(options_of(job.options))
    number(name, default::Float64) = Float64(get(given, name, default))::Float64
    maybe(name) = (x = get(given, name, nothing); isnothing(x) ? nothing : Float64(x)::Float64)
    values = pyis(job.controller, pybuiltins.None) ? Float64[] : Float64[pyconvert(Float64, x) for x in job.controller]
    controller = isempty(values) ? nothing : ZeroPaths.TorchController(ntuple(i -> values[i], 6)...)
    return ZeroPaths.Request(
        number(:rtol, 1.0e-3), number(:atol, 1.0e-6), maybe(:first_step), number(:min_step, 0.0), number(:max_step, Inf),
        Int(get(given, :max_steps, 10_000))::Int, maybe(:step_size), controller, get(given, :mass_matrix, nothing),
    )
end

"The matrix with `job.rows`."
matrix(job::Py) = permutedims(reduce(hcat, [pyconvert(Vector{Float64}, row) for row in job.rows]))

"A tracker of zero paths, from `job.options`; `job.predictor` is the name of one of OrdinaryDiffEq's tableaus."
function tracker(job::Py)
    as_julia(name, value) = name in (:by, :linear_solver) ? Symbol(value) : value
    as_julia(name, value::Py) = s -> pyconvert(Float64, value(s))
    options = [name => as_julia(name, value) for (name, value) in options_of(job.options)]
    predictor = Symbol(pyconvert(String, job.predictor))
    tableau = predictor === :Midpoint ? ZeroPaths.midpoint() : getfield(ZeroPaths.Tableaus, predictor)()
    return ZeroPaths.ZeroPathTracker(; predictor = tableau, options...)
end
