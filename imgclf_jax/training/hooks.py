"""What happens between the steps of a run: rows, evaluations, checkpoints."""

from typing import Any

import jax

from imgclf_jax.devices import processes, xla
from imgclf_jax.training import loop, metrics, multistep, patience
from imgclf_jax.training.experiment import Experiment
from imgclf_jax.training.run import Run
from imgclf_jax.training.session import Session
from imgclf_jax.training.summary import not_finite
from imgclf_jax.workdir.rows import read_rows

# In the place of the number of a signal.
PRUNED, EARLY = -1, -2


def make_hooks(run: Run, session: Session) -> loop.Hooks:
    """Returns the functions that the loop calls: they print, evaluate, and write the files of the run."""
    plan, console, writer = session.experiment.plan, run.console, run.writer
    pruned: list[int] = []  # the step at which the run is to stop
    measures = session.experiment.measures
    early = [ran_out(run, writer.resume_step)]
    learning_rate = session.experiment.compiled("learning_rate", lambda: jax.jit(session.experiment.schedule))

    def progress(now: loop.Progress):
        writer.begin()
        writer.poll()
        epoch, rate = now.step / plan.steps_per_epoch, now.images_per_second
        if now.row:
            with xla.quiet():
                schedule = float(learning_rate(now.step - 1))
            rounded = None if rate is None else round(rate, 1)
            columns = {**now.means, "learning_rate": schedule, "images_per_second": rounded}
            console.emit(writer.files.write(step=now.step, epoch=epoch, split="train", **columns))
        shown = f"epoch {epoch:.2f}  {metrics.line(now.means, measures)}"
        shown += "" if rate is None else f"  {rate:,.0f} images/s"
        console.train(now.step, plan.steps, shown, now.row)

    def evaluate_valid(state, step):
        if not plan.valid_count:
            return None
        with xla.quiet():
            result = session.evaluate("valid", state)
        write_row(run, session.experiment, step, "valid", result)
        values = f"validation {metrics.line(result, measures)}{not_finite(result)}"
        console.print(f"step {step}/{plan.steps}  epoch {step / plan.steps_per_epoch:.2f}  {values}")
        if step < plan.steps and ran_out(run, step, result["accuracy"]):
            early[0] = True
            evaluations = run.config.train.patience
            console.print(f"no better validation accuracy in {evaluations} evaluations: the run ends here")
        elif step < plan.steps and run.calls.prune(step, plan.steps, result["accuracy"]):
            pruned.append(step)
        return result["accuracy"]

    def stop():
        return run.signal.number or (PRUNED if pruned else 0)

    def save(state, meter, step, valid_accuracy):
        with xla.quiet():
            if not session.is_finite(state):
                raise multistep.Diverged(step)
            content = {"state": state, "meter": meter, "inputs": session.normalization._asdict()}
            writer.save(step, content, valid_accuracy)

    def over():
        return EARLY if early[0] else 0

    return loop.Hooks(progress, evaluate_valid, save, stop, session.agree, over)


def ran_out(run: Run, step: int, accuracy: float | None = None) -> bool:
    """Whether the patience of a run is at its end, the same in all processes. All of them must call it.

    Args:
        run: the run.
        step: the number of steps it has taken; later rows do not count.
        accuracy: that of an evaluation at this step whose row may not be on disk yet.
    """
    if not run.config.train.patience:
        return False
    rows = processes.from_first(lambda: [row for row in read_rows(run.folder) if row["split"] == "valid"])
    known = patience.accuracies(rows, step) | ({} if accuracy is None else {step: accuracy})
    return patience.ran_out(known, run.config.train.patience)


def write_row(run: Run, experiment: Experiment, step: int, split: str, result: dict[str, Any]) -> None:
    """Writes the result of an evaluation as a row of the metrics files, and of standard output in mode "json"."""
    means = {name: result[name] for name in experiment.evaluated(tta=True) if name in result}
    epoch = step / experiment.plan.steps_per_epoch
    run.console.emit(run.writer.files.write(step=step, epoch=epoch, split=split, **means))
