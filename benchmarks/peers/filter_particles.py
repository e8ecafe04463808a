"""Bootstrap filter with ``particles``: a `StateSpaceModel`, its `Bootstrap`, and `SMC` with the default summaries."""

from __future__ import annotations

import math

import numpy as np
import particles
from particles import distributions, state_space_models
from worker import serve


class LinearGaussian(state_space_models.StateSpaceModel):
    def PX0(self):
        return distributions.Normal(loc=0.0, scale=self.sigma_x / math.sqrt(1 - self.rho**2))

    def PX(self, t, xp):
        return distributions.Normal(loc=self.rho * xp, scale=self.sigma_x)

    def PY(self, t, xp, x):
        return distributions.Normal(loc=x, scale=self.sigma_y)


def prepare(*, y, n, rho, sigma_x, sigma_y):
    model = LinearGaussian(rho=rho, sigma_x=sigma_x, sigma_y=sigma_y)
    data = np.array(y)

    def run(seed: int) -> dict:
        np.random.seed(seed)  # noqa: NPY002 (it draws from the global generator)
        bootstrap = state_space_models.Bootstrap(ssm=model, data=data)
        smc = particles.SMC(fk=bootstrap, N=n, resampling="systematic", ESSrmin=0.5)
        smc.run()
        return {"log_z": float(smc.logLt)}

    return run


if __name__ == "__main__":
    serve(prepare)
