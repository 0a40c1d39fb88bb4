# %% [markdown]
# # HomoODE and DEQ layers in Julia
#
# homojl's HomoODE follows `dz/ds = F(z; x)` from s = 0 to 1, and its DEQ solves `z = F(z; x)`, both with
#
#     F(z; x) = GN(conv2(relu(GN(conv1(z))) + x))
#
# where GN is group normalisation and x comes from the image. Here F is written in Julia and takes the weights of models
# in PyTorch; logits and gradients must then be the same. The same comparison is a good test of a layer of your own.
# `homojl julia add Lux` and, for the gradients, `homojl julia add Mooncake` install what it needs.
#
# First the two models in PyTorch, with random weights. Julia sees the memory of contiguous tensors as it is. The models
# keep their weights in channels-last order, which would be copied at every solve, so that is changed.

# %%
import torch
from matplotlib import pyplot as plt
from torch.nn.functional import cross_entropy

import homojl as hj

data = hj.load_dataset("digits")
images, labels = data.x_train[:8].double() / 16, data.y_train[:8]


def model_of(name, algorithm, adjoint):
    torch.manual_seed(0)
    model = hj.create_model(
        name,
        input_shape=(1, 8, 8),
        n_classes=10,
        channels=4,
        algorithm=algorithm,
        adjoint=adjoint,
        backend="pytorch",
    )
    return model.double().to(memory_format=torch.contiguous_format).eval()


deq = model_of("deq", hj.Anderson(rtol=1e-8), hj.ImplicitAdjoint())
homoode = model_of("homoode", hj.Dopri5(rtol=1e-6, atol=1e-6), hj.CheckpointAdjoint())
for name, weight in homoode.layer.named_parameters():
    print(name, tuple(weight.shape))

# %% [markdown]
# A tensor (N, C, H, W) is an array of size (W, H, C, N) in Julia, on the same memory. That is the order of NNlib's
# `conv`, which Lux exports; it turns its kernels around, which PyTorch does not, hence `flipped = true`. `p` is the
# tuple of the problem's `args`: x, and the weights in the order above. A field of an ODE is called with a time and a
# map without one, so with `t = nothing` one function serves both layers.

# %% needs lux
F = hj.JuliaField("""
using Lux: conv, relu
using Statistics: mean, var

along_channels(v) = reshape(v, 1, 1, :, 1)

convolution(x, weight, bias) = conv(x, weight; pad = 1, flipped = true) .+ along_channels(bias)

function group_norm(x, scale, shift)
    groups = reshape(x, :, min(32, size(x, 3)), size(x, 4))
    centred = groups .- mean(groups; dims = 1)
    normal = centred ./ sqrt.(var(groups; dims = 1, corrected = false) .+ 1e-5)
    return reshape(normal, size(x)) .* along_channels(scale) .+ along_channels(shift)
end

function f!(out, z, p, t = nothing)
    x, weight1, bias1, scale1, shift1, weight2, bias2, scale2, shift2 = p
    y = relu.(group_norm(convolution(z, weight1, bias1), scale1, shift1))
    out .= group_norm(convolution(y .+ x, weight2, bias2), scale2, shift2)
end
""")

# %% [markdown]
# Encoder and decoder stay in PyTorch. Between them Julia solves the problem, without calling PyTorch on the way.
# `PerSample` and `Shared` say which arguments have a row for each image.

# %% needs lux


def in_julia(model, algorithm, adjoint):
    x = model.encode(images).contiguous()
    z0 = model.layer.initial_point.expand_like(x)
    args = (hj.PerSample(x), *map(hj.Shared, model.layer.parameters()))
    ode = model.states_ode()
    problem = hj.ODEProblem(F, z0, (0.0, 1.0), args) if ode else hj.FixedPointProblem(F, z0, args)
    return model.decode(hj.solve(problem, algorithm, adjoint=adjoint, backend="julia").value)


def largest_difference(some, others):
    return max((a - b).abs().max().item() for a, b in zip(some, others, strict=True))


logits = {model: in_julia(model, model.algorithm, model.adjoint) for model in (deq, homoode)}
for model in (deq, homoode):
    difference = largest_difference([logits[model]], [model(images)])
    print(f"{type(model).__name__}: logits differ by at most {difference:.0e}")
    assert difference < 1e-6

# %% [markdown]
# Now the gradients of the loss by all weights, those of the encoder and the decoder too. Mooncake differentiates F in
# Julia, by reverse mode. The first gradient takes about a minute, in which Julia compiles it.

# %% needs lux


def gradients(model, logits):
    return torch.autograd.grad(cross_entropy(logits, labels), list(model.parameters()))


exact = {model: gradients(model, model(images)) for model in (deq, homoode)}
for model in (deq, homoode):
    difference = largest_difference(gradients(model, logits[model]), exact[model])
    largest = max(gradient.abs().max().item() for gradient in exact[model])
    print(f"{type(model).__name__}: gradients, of up to {largest:.2f}, differ by at most {difference:.0e}")
    assert difference < 1e-6

# %% [markdown]
# Both sides used the same methods, so they took the same steps and agree to rounding. Next, HomoODE is solved in Julia
# by `Vern7`, a method of order 7 that only Julia has, with `GaussAdjoint`, whose whole backward pass runs in Julia. The
# steps are now different, so results differ by what the tolerance allows, and less with a smaller tolerance. Gradients
# converge more slowly than logits, in PyTorch as in Julia: the derivative of relu jumps at zero.

# %% needs lux
reference = model_of("homoode", hj.Dopri5(rtol=1e-10, atol=1e-10), hj.CheckpointAdjoint())
target = reference(images)
target_gradients = gradients(reference, target)
tolerances = [1e-3, 1e-4, 1e-5, 1e-6, 1e-7]
distances = {"Vern7 in Julia": [], "Dopri5 in PyTorch": []}
for tolerance in tolerances:
    within = {"rtol": tolerance, "atol": tolerance}
    homoode.algorithm, homoode.adjoint = hj.Dopri5(**within), hj.GaussAdjoint()
    found = in_julia(homoode, hj.Vern7(**within), hj.GaussAdjoint()), homoode(images)
    for name, values in zip(distances, found, strict=True):
        away = largest_difference(gradients(homoode, values), target_gradients)
        distances[name].append((largest_difference([values], [target]), away))
for name, both in distances.items():
    print(f"{name}: at {tolerances[-1]:.0e}, logits {both[-1][0]:.0e} and gradients {both[-1][1]:.0e} away")
    assert both[-1][0] < 1e-5
    assert both[-1][1] < 5e-3

# %% needs lux
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, style in zip(distances, ("o-", "s--"), strict=True):
    for what, values in zip(("logits", "gradients"), zip(*distances[name], strict=True), strict=True):
        axes.loglog(tolerances, values, style, label=f"{what}, {name}")
axes.set(xlabel="tolerance", ylabel="distance to a solve at 1e-10")
axes.invert_xaxis()
axes.legend(fontsize="small")
