"""Improved DDPM's hybrid loss in torch, written from the paper (2102.09672, eq. 15 and 16), for the peer's training."""

import math

import numpy as np
import torch


class HybridLoss:
    """Tables of the cosine schedule in float64; `__call__` gives the loss of a prediction of eps and its variance."""

    def __init__(self, num_steps: int = 1000):
        u = np.arange(num_steps + 1) / num_steps
        level = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - level[1:] / level[:-1], 0.999)
        alpha_bar = np.cumprod(1 - beta)
        previous = np.append(1.0, alpha_bar[:-1])
        variance = beta * (1 - previous) / (1 - alpha_bar)
        tables = {
            "signal": np.sqrt(alpha_bar),
            "sigma": np.sqrt(1 - alpha_bar),
            "x_0": np.sqrt(previous) * beta / (1 - alpha_bar),
            "x_t": np.sqrt(1 - beta) * (1 - previous) / (1 - alpha_bar),
            "low": np.log(np.append(variance[1], variance[1:])),
            "high": np.log(beta),
        }
        self.num_steps = num_steps
        self.tables = {name: torch.tensor(table, dtype=torch.float32) for name, table in tables.items()}

    def rows(self, name: str, t: torch.Tensor, ndim: int) -> torch.Tensor:
        return self.tables[name][t].reshape(-1, *[1] * (ndim - 1))

    def noised(self, x_0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.rows("signal", t, x_0.ndim) * x_0 + self.rows("sigma", t, x_0.ndim) * noise

    def __call__(self, output: torch.Tensor, x_0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        eps, channels = output.chunk(2, dim=1)
        row = {name: self.rows(name, t, 4) for name in self.tables}
        x_t = self.noised(x_0, t, noise)
        simple = (eps - noise).square().mean(dim=(1, 2, 3))
        fraction = (channels + 1) / 2
        log_variance = fraction * row["high"] + (1 - fraction) * row["low"]
        guess = (x_t - row["sigma"] * eps.detach()) / row["signal"]
        mean, true_mean = (row["x_0"] * x + row["x_t"] * x_t for x in (guess, x_0))
        ratio = (row["low"] - log_variance).exp()
        kl = 0.5 * (log_variance - row["low"] + ratio - 1 + (true_mean - mean).square() * (-log_variance).exp())
        vlb = torch.where(t == 0, self._bins(x_0, mean, log_variance), kl.mean(dim=(1, 2, 3)))
        return simple + 0.001 * self.num_steps * vlb / math.log(2)

    @staticmethod
    def _bins(x_0: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        inverse = (-0.5 * log_variance).exp()
        upper = torch.special.ndtr(inverse * (x_0 - mean + 1 / 255))
        lower = torch.special.ndtr(inverse * (x_0 - mean - 1 / 255))
        probability = torch.where(x_0 < -0.999, upper, torch.where(x_0 > 0.999, 1 - lower, upper - lower))
        return -probability.clamp(min=1e-12).log().mean(dim=(1, 2, 3))
