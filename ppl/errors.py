"""Every error that feynkac raises by name. Each message names the place and the fix."""

from __future__ import annotations


class FeynkacError(Exception):
    """Base of all errors raised by feynkac."""


class UnawaitedEffect(FeynkacError):
    """An effect such as ``fk.factor(...)`` was created in a program but never awaited."""


class ForeignAwaitable(FeynkacError):
    """A program awaited something that is not a feynkac effect; wrap it in ``fk.call``."""


class OutsideProgram(FeynkacError):
    """An effect was used where no program is running."""


class NonDeterministicProgram(FeynkacError):
    """A replayed program did not repeat its recorded sites, so a fork would be wrong."""


class EndlessStep(FeynkacError):
    """A particle visits site after site and never ends its step, so that no budget can stop it."""


class UncloseableProgram(FeynkacError):
    """A program catches what closes a particle that is gone (a bare ``except:``), and tries again for ever."""


class SharedMutation(FeynkacError, TypeError):
    """A particle changed a value that it shares with others, or a branch or iteration one of the code around it."""


class WriteConflict(FeynkacError):
    """Several branches wrote to one `fk.cell` in the same step, and one of them set it: a write would be lost."""


class InvalidWeight(FeynkacError, ValueError):
    """A log-weight is NaN or +inf, or a twist is not finite."""


class AmbiguousScore(FeynkacError, TypeError):
    """A score was used as a log-weight without saying how (``.log()``, ``.logit()``, ``/ beta``)."""


class CannotScore(FeynkacError):
    """A kernel cannot give the log-probability that an engine or a proposal needs."""


class UnsupportedProposal(FeynkacError, ValueError):
    """A proposal cannot reach everything that the model can, so its weights would be wrong."""


class UnfitGuide(FeynkacError, ValueError):
    """A guide does not fit its model: it observes or weighs, or draws other sites, or in another order or structure."""


class ImpossibleChoice(FeynkacError, ValueError):
    """A forced choice does not fit the program: unused, or not a value of its site."""


class AllParticlesDead(FeynkacError):
    """Every particle has weight zero. ``all_dead="zero"`` returns log Z = −inf instead."""


class Unsupported(FeynkacError):
    """An engine needs something that this model does not offer."""


class NotTraceable(FeynkacError, TypeError):
    """JAX (or torch) cannot trace a program, or a step of a scan, that was to be compiled; the site is named."""


class NotDifferentiable(FeynkacError, TypeError):
    """A density has no gradient at a site: a discrete value, or code that gradients cannot pass; the site is named."""


class ImpossibleStart(FeynkacError):
    """A Markov kernel was to move a run from where the density is zero or no number, or its gradient is not finite."""


class InconsistentDensity(FeynkacError):
    """The density that a model gives for moves is not that of the paths it makes, so that moves would be wrong."""


class LadderStuck(FeynkacError):
    """Tempering makes no progress: no rise of the inverse temperature leaves enough effective sample size."""


class NonFiniteLoss(FeynkacError, ValueError):
    """A step of a fit has a loss or a gradient that is not finite. ``guide`` is the guide as it was before the step."""

    def __init__(self, message: str, guide: object = None) -> None:
        super().__init__(message)
        self.guide = guide


class UnreadableGuide(FeynkacError, ValueError):
    """A file is no saved guide, is damaged, or is that of another guide."""


class ContextOverflow(FeynkacError, ValueError):
    """A text is longer than the context of its language model.

    Raised in a program, or by what it awaits, and not caught there, it ends that particle, whose weight is zero, and no
    other: a text that cannot grow has no place in the target. A `ContextWarning` says so. Of several problems, one
    all of whose particles end so has no evidence, and the others go on.
    """


class ServerError(FeynkacError):
    """A server could not be reached, or did not do what it was asked to.

    Attributes:
        url: what was asked, without credentials.
        status: of the answer; None where none came.
        body: how the answer begins.
    """

    def __init__(self, message: str, url: str = "", status: int | None = None, body: str = "") -> None:
        super().__init__(message)
        self.url, self.status, self.body = url, status, body


class OutOfMemory(FeynkacError, MemoryError):
    """One text alone does not fit into the memory of the device that its model is on."""


class UnusableAnswer(FeynkacError, ValueError):
    """A server or an engine left out what it was asked for, or said what cannot be."""


class CannotWrite(FeynkacError, ValueError):
    """A tokenizer has no tokens that read as a string."""


class TokenizerMismatch(FeynkacError, ValueError):
    """A text is of a model whose tokenizer is another one, so that its tokens would be read as something else."""


class UnreadablePosterior(FeynkacError, ValueError):
    """A file is no saved posterior, of another format, damaged, too large, or holds what no run can have made."""


class CannotSend(FeynkacError, TypeError):
    """A model or an engine cannot be sent to another process; a function that makes it there can."""


class WorkerLost(FeynkacError, RuntimeError):
    """Processes died again and again that were to run a problem: for want of memory, or by a fault in C code."""


class WorkerError(FeynkacError, RuntimeError):
    """What a worker raised cannot be sent as it is: its name and its words."""


class JournalError(FeynkacError):
    """A journal cannot be used as it was asked to: it cannot be written, is of another schema, or of another model."""


class UnreadableJournal(JournalError, ValueError):
    """A file is no journal, or it is damaged. It is left as it is."""


class NotRecorded(JournalError, LookupError):
    """What a run asks for is not in the journal that it is replayed from.

    Attributes:
        row: the place of the request in its batch; None where the message names the particle and the site.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class FeynkacWarning(UserWarning):
    """Base of all warnings given by feynkac."""


class ContextWarning(FeynkacWarning):
    """Particles ended, with weight zero, as their texts do not fit into a context: see `ContextOverflow`."""


class CollapseWarning(FeynkacWarning):
    """A population of SMC has few different draws left, as its program draws all at once and then only weighs it."""


class BeamWarning(FeynkacWarning):
    """A beam has cut more of what it sums up than it was allowed to, see `feynkac.models.constraints.ByteLM`."""


class PromptWarning(FeynkacWarning):
    """A prompt has tokens that its author may not want: two begin tokens, or an end token."""


class JournalWarning(FeynkacWarning):
    """A journal is of another program, or some answers cannot be kept in it."""
