# %% [markdown]
# # A stiff problem, with gradients
#
# Robertson's three chemical reactions run at rates that differ by nine orders of magnitude. An explicit method takes
# steps of the fastest one's length to the very end; an implicit one takes the steps that the solution asks for. Both
# the solution and its gradient with respect to the rates are solved for.

# %%
import torch
from matplotlib import pyplot as plt

import homojl as hj

rates = torch.tensor([0.04, 3e7, 1e4], dtype=torch.float64, requires_grad=True)


def robertson(t, y, k):
    a, b, c = y.unbind(-1)
    slow, fast, back = k[0] * a, k[1] * b**2, k[2] * b * c
    return torch.stack([back - slow, slow - back - fast, fast], dim=-1)


y0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
times = torch.cat([torch.zeros(1), torch.logspace(-4, 3, 40)]).double()
solution = hj.solve(
    hj.ODEProblem(robertson, y0, times, args=(rates,)),
    hj.KenCarp4(rtol=1e-5, atol=1e-9),
    adjoint=hj.CheckpointAdjoint(),
    backend="pytorch",
)
print(solution.stats.n_accepted, "steps of KenCarp4 to t = 1000")
short = hj.ODEProblem(robertson, y0, (0.0, 1.0), args=(rates.detach(),))
explicit = hj.solve(short, hj.Tsit5(rtol=1e-5, atol=1e-9), backend="pytorch")
print(explicit.stats.n_accepted, "steps of Tsit5 to t = 1 alone")
assert solution.stats.n_accepted < explicit.stats.n_accepted

# %% [markdown]
# How much of the last substance there is at the end, and how that changes with each rate, in per cent of a change of
# the rate by one per cent. The second column holds the gradient against a difference quotient.

# %%
last = solution.value[2]
(gradient,) = torch.autograd.grad(last, rates)


def end(k):
    problem = hj.ODEProblem(robertson, y0, (0.0, 1000.0), args=(k,))
    return hj.solve(problem, hj.KenCarp4(rtol=1e-7, atol=1e-11), backend="pytorch").value[2]


for i, name in enumerate(("slow", "fast", "back")):
    step = torch.zeros(3, dtype=torch.float64)
    step[i] = 1e-3 * rates[i].item()
    with torch.no_grad():
        quotient = (end(rates + step) - end(rates - step)) / (2 * step[i])
    print(f"{name}: {(gradient[i] * rates[i] / last).item():+.4f} {(quotient * rates[i] / last).item():+.4f}")
    assert abs(gradient[i] - quotient) < 0.02 * abs(quotient)

# %%
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
ys = solution.ys.detach()
for i, (label, scale) in enumerate((("a", 1), ("b, times 10,000", 1e4), ("c", 1))):
    axes.semilogx(times[1:], scale * ys[1:, i], label=label)
axes.set(xlabel="time", ylabel="concentration")
axes.legend(loc=(0.02, 0.6))
