# %% [markdown]
# # A zero path and its fold
#
# Homotopy continuation finds a root of `r(z)` by a detour: it follows the zeros of `H(z, lambda) = lambda r(z) + (1 -
# lambda)(z - z0)` from `z0` at lambda = 0, where the zero is known, to a root of r at lambda = 1. The path may turn
# back on its way, at a fold. Who goes forward in lambda alone falls off there; who goes along the length of the path
# passes.

# %%
import torch
from matplotlib import pyplot as plt

import homojl as hj

z0 = torch.tensor([1.5], dtype=torch.float64)
problem = hj.HomotopyProblem(lambda z: z**3 - 3 * z + 2.1, z0)
path = hj.solve(problem, hj.ArcLength())
print(path.status, f"root {path.value.item():.6f} after {len(path.s)} points and {path.folds} folds")
forward = hj.solve(problem, hj.NaturalParameter(), throw=False)
print(forward.status, forward.message)
assert path.folds == 2
assert not forward.status.ok
assert abs(path.value**3 - 3 * path.value + 2.1).item() < 1e-4

# %%
figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
z = torch.linspace(-2.02, 1.5, 300).double()
axes.plot((z - z0) / (z - z0 - problem.r(z)), z, color="0.8", lw=4, label="H = 0")
axes.plot(path.lambdas, [z.item() for z in path.states], "o-", ms=3, label="by arc length")
axes.plot(forward.lambdas, [z.item() for z in forward.states], "x-", color="C3", label="forward in lambda")
axes.plot(1, path.value.item(), "*", ms=14, color="C2", label="the root")
axes.set(xlabel="lambda", ylabel="z")
axes.legend()
