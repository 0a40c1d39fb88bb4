# %% [markdown]
# # A neural ODE on a noisy spiral
#
# A neural ODE learns the law by which something moves, `dy/dt = field(t, y)`, from where it was seen. The data are
# noisy positions on a spiral; the field is a small network, and the layer follows it through all times at once.

# %%
import torch
from matplotlib import pyplot as plt
from torch import nn

import homojl as hj

torch.manual_seed(0)
times = torch.linspace(0, 6, 40)
matrix = torch.tensor([[-0.15, 1.0], [-1.0, -0.15]])
start = torch.tensor([[2.0, 0.0]])
exact = torch.stack([start @ torch.matrix_exp(t * matrix).T for t in times])
seen = exact + 0.08 * torch.randn_like(exact)

# %% [markdown]
# `times` gives the layer all times to return the state at, stacked in front. To learn from the whole spiral at once
# is hard for a field that begins anywhere, so the first steps see its beginning alone.


# %%
class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, t, y):
        return self.net(y)


ode = hj.nn.ODE(Field(), hj.Tsit5(rtol=1e-3, atol=1e-3), adjoint=hj.DirectAdjoint())
optimizer = torch.optim.Adam(ode.parameters(), lr=0.02)
losses = []
for step in range(160):
    count = min(len(times), 8 + step // 3)
    path = ode(start, times=times[:count])
    loss = (path - seen[:count]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
with torch.no_grad():
    later = torch.linspace(0, 9, 150)
    learned = ode(start, times=later)
    error = (ode(start, times=times) - exact).norm(dim=-1).mean().item()
print(f"mean distance to the spiral without its noise: {error:.3f} (the noise: 0.10)")
print(ode.last)
assert error < 0.15

# %% [markdown]
# Beyond the last observation, at t = 6, the path is what the learned field says of places that it has nearly seen.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.plot(*exact[:, 0].T, color="0.7", lw=4, label="the spiral")
left.plot(*seen[:, 0].T, ".", color="C1", label="seen")
inside = later <= 6
left.plot(*learned[inside, 0].T, color="C0", label="learned")
left.plot(*learned[~inside, 0].T, "--", color="C0", label="beyond what was seen")
left.set(xlabel="$y_1$", ylabel="$y_2$", aspect="equal", ylim=(-1.8, 2.9))
left.legend(fontsize=8, loc="upper right")
right.semilogy(losses)
right.set(xlabel="step", ylabel="mean squared distance")
