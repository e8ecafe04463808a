"""Programs traced by JAX: what a program is where its values are symbols.

A program's code is run once, by `driver.trace` (or any coroutine of effects by `driver.follow`), with a `Listener` that
says what each site is answered and collects what it weighs:

    def log_joint(theta):                            # to be called inside jit, vmap, grad, under jax.enable_x64(True)
        weigher = Weigher(given={"theta": theta})    # given by address; or Weigher(key) draws
        out = trace(program, weigher)                # out.value, out.level (of the guide), out.visits, out.step
        return weigher.log_prob + weigher.log_potential

Handlers apply as ever, and sites have the addresses that they have when interpreted. A listener sees each site as a
`Met`: its place (`spot`), its law in JAX (`law`, `proposal`; see `laws`), what handlers force (`forced`) and observe
(`value`), its ``log_prob(value)`` with masks and scales applied, its ``key(run_key)``, its program step. It overrides
``sample``, ``observe``, ``factor``, ``twist``, ``record``, ``score``, ``call`` and ``other`` (effects of its own).

An `fk.scan` is one `lax.scan`: its step is traced once, as a `loops.Plan`, with a listener that ``iterate`` makes;
``enter`` gives it what differs by iteration, ``outputs`` what it collected, and ``leave`` takes that up, stacked. A
site in it has as `slot` its address in the first iteration, and `Spot.at(index)` says name, visit and step in others.
A listener that overrides ``scan(plan)`` may do otherwise: ``plan.step(carry, x, t, listener)`` is one iteration.

What cannot be traced (a branch on a value, a language model's step, a lazy score, `fk.call`, `fk.cell`, `fk.nested`) is
a `NotTraceable` that names the site.
"""
