"""Damped Gauss-Newton under a Huber loss, for a whole batch of fits at once.

    cost(u) = sum_i w_i rho((log L(u, x_i) - log y_i) / delta) + penalties

u are the parameters, by their logarithms where they are positive. Each fit of the batch has weights
and targets of its own, so that thousands of resamples cost a few dozen sweeps over the points.
Residuals beyond delta count by weights delta/|residual|, which majorises Huber's loss: every
accepted step lowers the cost. Bounds hold by projection: a parameter at its bound stays there while
the gradient points outwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from treering.analysis.laws.form import Array, Form, Points

PENALTY = 1e6  # on the square of a constraint's violation
LEAST = 1e-9  # a prediction below is taken for it: its logarithm would not be a number
HUGE = 1e30


@dataclass(frozen=True)
class Problem:
    """A form on scaled points; spread: what residuals are divided by where they are not of logs."""

    form: Form
    points: Points
    delta: float
    spread: float = 1.0

    @property
    def low(self) -> Array:
        return np.array([np.log(p.low) if p.log else p.low for p in self.form.parameters])

    @property
    def high(self) -> Array:
        return np.array([np.log(p.high) if p.log else p.high for p in self.form.parameters])

    def inward(self, parameters: Array) -> Array:
        """Parameters as they are searched, within their bounds."""
        logs = np.array([p.log for p in self.form.parameters])
        with np.errstate(divide="ignore", invalid="ignore"):
            u = np.where(logs, np.log(np.maximum(parameters, 1e-300)), parameters)
        return np.clip(u, self.low, self.high)

    def outward(self, u: Array) -> Array:
        """Parameters in their own units."""
        logs = np.array([p.log for p in self.form.parameters])
        return np.where(logs, np.exp(np.where(logs, u, 0.0)), u)

    def goal(self, target: Array) -> Array:
        """What residuals are taken to: log y, or y over its spread."""
        return np.log(target) if self.form.logarithmic else target / self.spread

    def residual(self, value: Array, goal: Array) -> Array:
        if self.form.logarithmic:
            return np.log(np.maximum(value, LEAST)) - goal
        return value / self.spread - goal

    def system(self, u: Array, weights: Array, goal: Array) -> tuple[Array, Array, Array]:
        """Cost [b], gradient [b, p] and Gauss-Newton matrix [b, p, p] at u [b, p]."""
        theta = self.outward(u)
        with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
            value, slopes = self.form.gradient(theta, self.points)
            residual = self.residual(value, goal)
            within = np.abs(residual) <= self.delta
            size = np.abs(residual)
            rho = np.where(within, residual**2 / 2, self.delta * (size - self.delta / 2))
            cost = (weights * rho).sum(-1) / self.delta**2
            curved = weights * np.where(within, 1.0, self.delta / np.maximum(size, self.delta))
            if self.form.logarithmic:
                slopes /= np.maximum(value, LEAST)[:, None, :]
            else:
                slopes /= self.spread
            slopes *= self._chain(theta)[:, :, None]
            weighted = slopes * (curved / self.delta**2)[:, None, :]
            gradient = np.einsum("bpn,bn->bp", weighted, residual)
            matrix = weighted @ slopes.transpose(0, 2, 1)
            cost, gradient, matrix = self._penalised(theta, cost, gradient, matrix)
        bad = ~(np.isfinite(cost) & np.isfinite(gradient).all(-1) & np.isfinite(matrix).all((1, 2)))
        cost = np.where(bad, HUGE, cost)
        gradient[bad], matrix[bad] = 0.0, np.eye(u.shape[1])
        return cost, gradient, matrix

    def _chain(self, theta: Array) -> Array:
        """d theta / d u."""
        return np.where([p.log for p in self.form.parameters], theta, 1.0)

    def _penalised(
        self, theta: Array, cost: Array, gradient: Array, matrix: Array
    ) -> tuple[Array, Array, Array]:
        if self.form.constraint is None:
            return cost, gradient, matrix
        violation, by = self.form.constraint(self.form.values(theta), self.points)
        over, slope = np.maximum(violation, 0.0), np.zeros_like(theta)
        for i, name in enumerate(self.form.names):
            slope[:, i] = by.get(name, 0.0)
        slope = slope * self._chain(theta) * (over > 0)[:, None]
        cost = cost + PENALTY * over**2 / 2
        gradient = gradient + PENALTY * over[:, None] * slope
        return cost, gradient, matrix + PENALTY * slope[:, :, None] * slope[:, None, :]


def descend(
    problem: Problem, u: Array, weights: Array, goal: Array, *, sweeps: int = 60, near: float = 1e-6
) -> tuple[Array, Array]:
    """The batch u [b, p] carried to minima nearby, and their costs [b]. weights, goal: [b, n] or
    [n]. A fit is done when a step lowers its cost by less than `near` of it."""
    u = u.copy()
    weights = np.broadcast_to(weights, (len(u), weights.shape[-1]))
    goal = np.broadcast_to(goal, (len(u), goal.shape[-1]))
    cost, gradient, matrix = problem.system(u, weights, goal)
    damping, live = np.full(len(u), 1e-3), np.arange(len(u))
    for _ in range(sweeps):
        if not live.size:
            break
        step = _step(problem, u[live], gradient[live], matrix[live], damping[live])
        trial = np.clip(u[live] - step, problem.low, problem.high)
        found = problem.system(trial, weights[live], goal[live])
        better = found[0] < cost[live]
        gained = cost[live] - found[0]
        done = (better & (gained < near * cost[live])) | (damping[live] > 1e8)
        taken = live[better]
        u[taken], cost[taken] = trial[better], found[0][better]
        gradient[taken], matrix[taken] = found[1][better], found[2][better]
        damping[live] = np.where(better, np.maximum(damping[live] / 8, 1e-9), damping[live] * 6)
        live = live[~done]
    return u, cost


def _step(problem: Problem, u: Array, gradient: Array, matrix: Array, damping: Array) -> Array:
    """Damped steps; none along a bound's outward normal."""
    outward = ((u <= problem.low) & (gradient > 0)) | ((u >= problem.high) & (gradient < 0))
    free = (~outward).astype(np.float64)
    diagonal = np.einsum("bpp->bp", matrix)
    damped = matrix * free[:, :, None] * free[:, None, :]
    ridge = damping[:, None] * diagonal + 1e-10 * diagonal.max(-1, keepdims=True) + 1e-300
    np.einsum("bpp->bp", damped)[...] += np.where(free > 0, ridge, 1.0)
    step = np.linalg.solve(damped, (gradient * free)[..., None])[..., 0]
    return np.asarray(step, np.float64)
