"""Linear operators W with I - W strongly monotone whatever their parameters are, and the maps prox(W z + bias).

W = (1 - m) I - A^T A + B - B^T, so that z.(I - W) z = m |z|^2 + |A z|^2 >= m |z|^2.
Source: Winston, Kolter (2020), arXiv 2006.08591, Proposition 1.

Convolutions live on a torus that is larger than the map, where Fourier's transform turns W, and the inverse that a
splitting method needs, into one small matrix for each frequency; the nonlinearity keeps what lies beside the map at
zero, so that the equilibrium is that of convolutions padded with zeros. Several scales are coupled from fine to coarse
alone: with A upper bidiagonal in blocks, A_i on the diagonal and D_i^T, the transpose of a stride-2 convolution, beside
it, one choice of the blocks of B beside its diagonal cancels those of W above and doubles those below:

    W_ii = (1 - m) I - A_i^T A_i - D_i D_i^T + B_i - B_i^T,    W_(i,i-1) = -2 D_i A_(i-1),

which a substitution from the finest scale on inverts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from homojl.splitting import AbstractMonotoneMap

Tensor = torch.Tensor


class DenseMap(AbstractMonotoneMap):
    """relu(W z + bias) with args = (bias (B, n), W (1, n, n))."""

    def affine(self, z: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        return torch.addmm(bias, z, weight[0].T)

    def proximal(self, y: Tensor) -> Tensor:
        return y.relu()

    def resolvent(self, alpha: float, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        inverse = torch.linalg.inv(_shifted(weight, alpha))
        return alpha * bias @ inverse[0].T, inverse

    def resolve(self, u: Tensor, offset: Tensor, inverse: Tensor) -> Tensor:
        return torch.addmm(offset, u, inverse[0].T)


class TorusMap(AbstractMonotoneMap):
    """relu(W z + bias) beside which all is zero, on one torus for each scale, the finest first.

    args = (bias (B, n), S_1, ..., S_k), where S_i (1, frequencies, C_i + C_(i+1), C_i), complex, has W_ii above
    W_(i+1,i) before its subsampling, and S_k only W_kk. A state (B, n) holds the tori (C_i, N_i, N_i) in a row.

    Args:
        channels: C_i.
        tori: N_i, each twice the next.
        maps: height and width of the part of each torus that may be other than zero.
    """

    def __init__(self, channels: Sequence[int], tori: Sequence[int], maps: Sequence[tuple[int, int]]) -> None:
        self.shapes = [(c, n, n) for c, n in zip(channels, tori, strict=True)]
        self.maps = list(maps)
        self._sizes = [c * n * n for c, n, _ in self.shapes]

    def unpack(self, z: Tensor) -> list[Tensor]:
        """(B, n) as the tori (B, C_i, N_i, N_i)."""
        parts = z.split(self._sizes, dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def crop(self, z: Tensor, scale: int) -> Tensor:
        """The map (B, C_i, H_i, W_i) of one scale."""
        height, width = self.maps[scale]
        return self.unpack(z)[scale][:, :, :height, :width]

    def place(self, finest: Tensor) -> Tensor:
        """A map (B, C_1, H_1, W_1) as a state (B, n) that is zero elsewhere."""
        _, n, _ = self.shapes[0]
        torus = F.pad(finest, (0, n - finest.shape[3], 0, n - finest.shape[2]))
        return F.pad(torus.flatten(1), (0, sum(self._sizes[1:])))

    def affine(self, z: Tensor, bias: Tensor, *symbols: Tensor) -> Tensor:
        parts, below = [], None
        for torus, symbol in zip(self.unpack(z), symbols, strict=True):
            out, into = _multiply(symbol, torus)
            parts.append((out if below is None else out + below).flatten(1))
            below = into
        return torch.cat(parts, dim=1) + bias

    def proximal(self, y: Tensor) -> Tensor:
        parts = []
        for torus, (_, n, _), (height, width) in zip(self.unpack(y), self.shapes, self.maps, strict=True):
            inside = torus[:, :, :height, :width].relu()
            parts.append(F.pad(inside, (0, n - width, 0, n - height)).flatten(1))
        return torch.cat(parts, dim=1)

    def resolvent(self, alpha: float, bias: Tensor, *symbols: Tensor) -> tuple[Tensor, ...]:
        result = []
        for symbol, (channels, _, _) in zip(symbols, self.shapes, strict=True):
            diagonal, coupling = symbol[:, :, :channels], symbol[:, :, channels:]
            inverse = torch.linalg.inv(_shifted(diagonal, alpha))
            result.append(torch.cat([inverse, alpha * coupling @ inverse], dim=2))
        return alpha * bias, *result

    def resolve(self, u: Tensor, offset: Tensor, *symbols: Tensor) -> Tensor:
        parts, below = [], None
        for torus, symbol in zip(self.unpack(u + offset), symbols, strict=True):
            out, below = _multiply(symbol, torus if below is None else torus + below)
            parts.append(out.flatten(1))
        return torch.cat(parts, dim=1)


class MonotoneLinear(nn.Module):
    """W of a dense layer.

    Args:
        width: n.
        m: monotonicity, positive.
    """

    def __init__(self, width: int, *, m: float) -> None:
        super().__init__()
        self.m = m
        self.A, self.B = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.map = DenseMap()

    def forward(self) -> tuple[Tensor]:
        """W, (1, n, n)."""
        a, b = self.A.weight, self.B.weight
        identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
        return (((1 - self.m) * identity - a.T @ a + b - b.T)[None],)


class MonotoneConvolution(nn.Module):
    """W of 3 x 3 convolutions on one or several scales, each half as high and wide as the one before.

    Each kernel is its parameter divided by that parameter's norm, times a learned number.

    Args:
        channels: of each scale, the finest first.
        size: height and width of the finest map.
        m: monotonicity, positive.

    Attributes:
        map: the nonlinear map of these tori.
    """

    def __init__(self, channels: Sequence[int], size: tuple[int, int], *, m: float) -> None:
        super().__init__()
        self.m = m
        self.A = nn.ModuleList(ScaledKernel(c, c) for c in channels)
        self.B = nn.ModuleList(ScaledKernel(c, c) for c in channels)
        self.D = nn.ModuleList(ScaledKernel(c, d) for c, d in itertools.pairwise(channels))
        self._channels = list(channels)
        self.resize_(size)

    def resize_(self, size: tuple[int, int]) -> None:
        """Have the operator work on finest maps of that height and width; the parameters are the same."""
        maps = [size]
        for _ in self._channels[1:]:
            height, width = maps[-1]
            maps.append((-(-height // 2), -(-width // 2)))
        coarsest = fast_length(max(maps[-1]) + 2)  # a gap that A^T A, 5 x 5, does not bridge
        tori = [coarsest * 2**k for k in reversed(range(len(self._channels)))]
        self.map = TorusMap(self._channels, tori, maps)

    def forward(self) -> tuple[Tensor, ...]:
        """The symbols that the map takes after its bias."""
        symbols = []
        for i, (channels, n, _) in enumerate(self.map.shapes):
            a, b = kernel_symbol(self.A[i](), n), kernel_symbol(self.B[i](), n)
            identity = torch.eye(channels, dtype=a.dtype, device=a.device)
            symbol = (1 - self.m) * identity - a.mH @ a + b - b.mH
            if i > 0:
                d = self.D[i - 1]()
                # D D^T on the coarse torus: its kernel is d's autocorrelation at even distances.
                symbol = symbol - kernel_symbol(F.conv2d(d, d, padding=2)[:, :, ::2, ::2], n)
            if i < len(self.D):
                symbol = torch.cat([symbol, -2 * kernel_symbol(self.D[i](), n) @ a], dim=1)
            symbols.append(symbol[None])
        return tuple(symbols)


class ScaledKernel(nn.Module):
    """A 3 x 3 kernel (out, in, 3, 3) of a norm of its own: weight / norm(weight) times `gain`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Conv2d(in_channels, out_channels, 3).weight.detach())
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self) -> Tensor:
        norm = torch.linalg.vector_norm(self.weight).clamp_min(torch.finfo(self.weight.dtype).tiny)
        return self.weight * (self.gain / norm)


def kernel_symbol(kernel: Tensor, n: int) -> Tensor:
    """The matrices that a convolution on an n x n torus multiplies Fourier coefficients with.

    Args:
        kernel: (out, in, 3, 3), as `torch.nn.functional.conv2d` takes it, centred.
        n: at least 3.

    Returns:
        (n * (n // 2 + 1), out, in), complex: the half of the frequencies that `torch.fft.rfft2` has.
    """
    frequency = torch.arange(n, dtype=kernel.dtype, device=kernel.device) * (2 * torch.pi / n)
    distance = torch.arange(-1, 2, dtype=kernel.dtype, device=kernel.device)
    down, along = frequency[:, None] * distance, frequency[: n // 2 + 1, None] * distance
    phase = (down[:, None, :, None] + along[None, :, None, :]).flatten(2).flatten(0, 1)  # (frequencies, 9)
    taps = kernel.flatten(2).flatten(0, 1).T
    return torch.complex(phase.cos() @ taps, phase.sin() @ taps).unflatten(1, kernel.shape[:2])


def fast_length(least: int) -> int:
    """The smallest length of at least 3 and `least` with no prime factor above 5, which Fourier transforms like."""
    return next(n for n in itertools.count(max(least, 3)) if _is_smooth(n))


def _is_smooth(n: int) -> bool:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


def _shifted(weight: Tensor, alpha: float) -> Tensor:
    """I + alpha (I - W) of matrices (..., n, n)."""
    identity = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    return (1 + alpha) * identity - alpha * weight


def _multiply(symbol: Tensor, torus: Tensor) -> tuple[Tensor, Tensor | None]:
    """A symbol (1, F, C + D, C) on a torus (B, C, N, N): (B, C, N, N), and (B, D, N/2, N/2) or None where D = 0."""
    batch, channels, n, _ = torus.shape
    # Contiguous, forward and backward: products of complex matrices with other strides take a dozen times longer.
    spectrum = torch.fft.rfft2(torus).permute(2, 3, 1, 0).reshape(-1, channels, batch).contiguous()
    product = symbol[0] @ spectrum
    if product.requires_grad:
        product.register_hook(_contiguous)
    product = product.unflatten(0, (n, n // 2 + 1)).permute(3, 2, 0, 1)
    out = torch.fft.irfft2(product, s=(n, n))
    if out.shape[1] == channels:
        return out, None
    return out[:, :channels], out[:, channels:, ::2, ::2]


def _contiguous(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else grad.contiguous()
